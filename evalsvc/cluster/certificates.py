"""Certificates for a cluster: one key pair that scheduler, service and workers share, and its authority, itself.

Anyone with the pair may connect and run code on every worker; nobody else may.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from evalsvc.errors import InvalidRequest, os_reason

CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"

DAYS = 3650
"""Days of validity: ten years, because a cluster that stops on a forgotten date is worse than an old key."""


def write_certificates(folder: Path) -> Mapping[str, Path]:
    paths = {name: folder / name for name in (CA, CERT, KEY)}
    if existing := [str(path) for path in paths.values() if path.exists()]:
        raise InvalidRequest(
            f"{', '.join(existing)}: exists already and workers may use it; choose another folder or delete the files"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in _make().items():
            # Create the file with its final mode, so that it is never readable by others.
            descriptor = os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(content)
    except OSError as error:
        raise InvalidRequest(f"{folder} cannot be written ({os_reason(error)}); choose another folder") from None
    return paths


def _make() -> dict[str, bytes]:
    # One certificate that signs itself: whoever has its key is let in anyway, so a second one would guard nothing.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "evalsvc cluster")])
    begin = datetime.now(UTC) - timedelta(hours=1)  # because the clocks of machines differ
    others = ("crl_sign", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    refused = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **refused)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {CA: certificate, CERT: certificate, KEY: private}
