import hashlib
import os
from pathlib import Path

import pytest

from evalsvc.checkpoints.reference import (
    CheckpointRef,
    Identity,
    check_sha256,
    hash_files,
    identify,
    uploaded_sha256,
    verify,
)
from evalsvc.errors import CheckpointChanged, CheckpointGone, CheckpointNotAllowed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "epoch_1.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "hf"
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "sub" / "config.json").write_bytes(b"{}")
    return path


def test_identity_of_file_and_folder(file: Path, folder: Path, tmp_path: Path) -> None:
    os.utime(file, ns=(5, 5))
    assert identify(file) == Identity(7, 5)
    os.utime(folder / "model.safetensors", ns=(5, 5))
    os.utime(folder / "sub" / "config.json", ns=(9, 9))
    assert identify(folder) == Identity(9, 9)
    with pytest.raises(CheckpointGone, match="no such file"):
        identify(tmp_path / "none.pt")


def test_verify(file: Path, folder: Path) -> None:
    def refused(reference: CheckpointRef, error: type[Exception], *fragments: str) -> None:
        with pytest.raises(error) as caught:
            verify(reference)
        for fragment in fragments:
            assert fragment in str(caught.value)

    verify(CheckpointRef(str(file)))
    reference = CheckpointRef(str(file), identify(file), label="run-a step 25")
    verify(reference)
    file.write_bytes(b"other weights")
    told = ("run-a step 25", str(file))
    refused(reference, CheckpointChanged, *told, "13 bytes", "7 bytes", "replace=true")
    file.unlink()
    refused(reference, CheckpointGone, *told, "was deleted before it was evaluated", "spool=link or spool=copy")
    reference = CheckpointRef(str(folder), identify(folder))
    (folder / "sub" / "more.json").write_bytes(b"{}")
    refused(reference, CheckpointChanged)


def test_uris_of_uploaded_files() -> None:
    assert uploaded_sha256(f"upload:{'A' * 64}") == "a" * 64
    assert uploaded_sha256("/uploads/a.pt") is None
    for uri in ("upload:", "upload:abc", f"upload:{'0' * 63}/", f"upload:{'0' * 64}/../a", "upload://a"):
        with pytest.raises(CheckpointNotAllowed, match="64 hexadecimal digits"):
            uploaded_sha256(uri)


def test_an_uploaded_file_that_was_deleted_is_looked_for_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uri would be a relative path: a file of this name in the folder of a worker is none of ours."""
    monkeypatch.chdir(tmp_path)
    uri = f"upload:{'0' * 64}"
    (tmp_path / uri).write_bytes(b"weights")
    reference = CheckpointRef(path=uri, identity=identify(tmp_path / uri), label="run 'a' step 1")
    with pytest.raises(CheckpointGone, match=r"run 'a' step 1: .* submit RUN STEP FILE --upload"):
        verify(reference)


def test_hash_of_file_and_folder(file: Path, folder: Path) -> None:
    assert hash_files(file) == hashlib.sha256(b"weights").hexdigest()
    before = hash_files(folder)
    (folder / "sub" / "config.json").rename(folder / "sub" / "other.json")
    assert hash_files(folder) != before, "the names belong to a folder's content"


def test_check_sha256() -> None:
    for sha256 in (None, "f" * 64):
        check_sha256(CheckpointRef("/a.pt", sha256=sha256), "f" * 64)
    with pytest.raises(CheckpointChanged, match=r"has sha256 ff.*, expected 00.*; post it again"):
        check_sha256(CheckpointRef("/a.pt", sha256="0" * 64), "f" * 64)
