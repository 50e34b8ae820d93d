"""Certificates for a cluster: a certificate authority, and one key pair that scheduler, service and workers share.

Anyone with the pair may connect and run code on every worker; nobody else may. The authority's own key is not kept, so
no second pair can be created for it; new certificates are a new set.
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
    """Write the certificates to `folder`, which is created if it is missing; return their paths by name.

    Raises:
        InvalidRequest: one of the files exists already, or the folder is not writable.
    """
    paths = {name: folder / name for name in (CA, CERT, KEY)}
    if existing := [str(path) for path in paths.values() if path.exists()]:
        raise InvalidRequest(
            f"{', '.join(existing)}: exists already and workers may use it; choose another folder or delete the files"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in _make().items():
            _write(paths[name], content)
    except OSError as error:
        raise InvalidRequest(f"{folder} cannot be written ({os_reason(error)}); choose another folder") from None
    return paths


def _write(path: Path, content: bytes) -> None:
    # Create the file with its final mode, so that it is never readable by others.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(content)


def _make() -> dict[str, bytes]:
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, name = _name("evalsvc certificate authority"), _name("evalsvc cluster")
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(name, authority_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .add_extension(_usage(signs=False), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    return {
        CA: authority.public_bytes(Encoding.PEM),
        CERT: certificate.public_bytes(Encoding.PEM),
        KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    # Valid from an hour ago, because the clocks of machines differ.
    begin = datetime.now(UTC) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=DAYS))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
