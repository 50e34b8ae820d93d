"""The certificates of a cluster: who has them is let in, so nobody else may read them."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from evalsvc.cluster.certificates import write_certificates
from evalsvc.errors import InvalidRequest


def test_the_pair_is_the_authority_s_and_its_owner_s_only(tmp_path: Path) -> None:
    paths = write_certificates(tmp_path / "new" / "tls")
    assert [path.name for path in paths.values()] == ["ca.pem", "cert.pem", "key.pem"]
    assert {path.stat().st_mode & 0o777 for path in paths.values()} == {0o600}
    authority, certificate = (
        x509.load_pem_x509_certificate(paths[name].read_bytes()) for name in ("ca.pem", "cert.pem")
    )
    certificate.verify_directly_issued_by(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths["cert.pem"], paths["key.pem"])


def test_what_workers_may_use_is_not_overwritten(tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in write_certificates(tmp_path).items()}
    with pytest.raises(InvalidRequest, match="exists already and workers may use it; choose another folder"):
        write_certificates(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "key.pem").unlink()
    (tmp_path / "cert.pem").unlink()
    with pytest.raises(InvalidRequest, match=r"ca\.pem: exists already"):
        write_certificates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_certificates(tmp_path / "file" / "tls")
