"""Certificates for a cluster: a certificate authority, and the one pair that scheduler, service and workers share.

Whoever has the pair is let in, and may run code on every worker; nobody else is. The authority's own key is not kept:
no other pair can be made for it, and new certificates are a new set.
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
"""Valid for ten years: a cluster that stops by itself one day is worse than an old key."""


def write_certificates(folder: Path) -> Mapping[str, Path]:
    """Make the files in `folder`, which is made where it is missing; their paths by name.

    Raises:
        InvalidRequest: one of the files is there already, or the folder cannot be written.
    """
    paths = {name: folder / name for name in (CA, CERT, KEY)}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise InvalidRequest(
            f"{', '.join(there)}: there already, and workers may use it; choose another folder, or delete it first"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in _make().items():
            _write(paths[name], content)
    except OSError as error:
        raise InvalidRequest(f"{folder}: cannot be written: {os_reason(error)}") from None
    return paths


def _write(path: Path, content: bytes) -> None:
    # Never readable by others, not even for a moment.
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
    # An hour back: the clocks of many machines differ.
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
