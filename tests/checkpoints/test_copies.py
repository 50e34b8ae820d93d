"""Spooled copies are complete or not there, and outlive their originals."""

import os
import shutil
from pathlib import Path

import pytest

from evalsvc.checkpoints.copies import copy_files, keep_upload, link_into, spool_path, spooled
from evalsvc.checkpoints.opening import opened
from evalsvc.checkpoints.reference import CheckpointRef, hash_files, identify
from evalsvc.errors import DataDirectoryUnusable, InvalidRequest


@pytest.fixture(params=["file", "folder"])
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / "run" / "epoch_1"
    inside = path / "sub" if request.param == "folder" else path.parent
    inside.mkdir(parents=True)
    (inside / path.name).write_bytes(b"weights")
    return path


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_a_spooled_checkpoint_outlives_the_original(original: Path, tmp_path: Path, kind: str) -> None:
    before, digest, copy = identify(original), hash_files(original), spooled(tmp_path, 7)
    path = spool_path(tmp_path, 7, str(original))
    if kind == "link":
        link_into(copy, original, path.name)
    else:
        copy.fill(lambda folder: copy_files(original, folder / path.name))
    shutil.rmtree(original.parent)
    assert identify(path) == before, "a spooled checkpoint must still be the posted one"
    assert hash_files(path) == digest
    for _ in range(2):
        copy.remove()
        assert list(copy.folder.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_what_takes_the_name_of_an_open_file_is_not_spooled(original: Path, tmp_path: Path, kind: str) -> None:
    """The spool lies below the roots of workers: what was exchanged for a file outside was read from there."""
    secret = tmp_path / "secret" / original.name
    (secret / "sub" if original.is_dir() else secret.parent).mkdir(parents=True)
    (secret / "sub" / "epoch_1" if original.is_dir() else secret).write_bytes(b"secrets")
    digest, copy = hash_files(original), spooled(tmp_path, 7)
    with opened(CheckpointRef(str(original))) as pinned:
        original.parent.rename(tmp_path / "moved")
        original.parent.symlink_to(tmp_path / "secret")
        if kind == "link":
            link_into(copy, Path(pinned.path), original.name)
        else:
            copy.fill(lambda folder: copy_files(Path(pinned.path), folder / original.name))
    assert hash_files(copy.folder / original.name) == digest
    assert not any(path.is_symlink() for path in copy.folder.rglob("*"))


def test_a_link_that_cannot_be_made_says_what_to_do(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InvalidRequest, match=r"invalid cross-device link.*use spool=copy"):
        link_into(spooled(tmp_path, 1), original, original.name)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_copy_that_broke_off_is_started_anew(original: Path, tmp_path: Path) -> None:
    copy = spooled(tmp_path, 1)
    (copy.partial / original.name).mkdir(parents=True)
    (copy.partial / original.name / "half").write_bytes(b"half")
    copy.fill(lambda folder: copy_files(original, folder / original.name))
    assert identify(copy.folder / original.name) == identify(original)
    assert not copy.partial.exists()


def test_an_uploaded_file_gets_its_name_in_the_spool(tmp_path: Path) -> None:
    """What a post that was rolled back left under the same id is replaced."""
    source = tmp_path / "verified"
    source.write_bytes(b"weights")
    copy = spooled(tmp_path, 7)
    for content in (b"weights", b"others"):
        source.unlink()
        source.write_bytes(content)
        keep_upload(copy, source, "upload:abc")
        assert [(path.name, path.read_bytes()) for path in copy.folder.iterdir()] == [("upload:abc", content)]
    source.unlink()
    source.symlink_to("/etc/passwd")
    keep_upload(copy, source, "upload:abc")
    assert (copy.folder / "upload:abc").is_symlink(), "a link is linked, and not what the link leads to"


def test_an_uploaded_file_that_cannot_be_linked(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryUnusable, match="one file system"):
        keep_upload(spooled(tmp_path, 7), tmp_path / "nowhere", "upload:abc")
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_copy_is_removed_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that lists the folder while its files are deleted would take the rest for the checkpoint."""
    copy = spooled(tmp_path, 7)
    copy.fill(lambda folder: [(folder / name).touch() for name in ("a", "b")])  # type: ignore[arg-type, return-value]
    remove, deletes_in_place = os.unlink, []

    def unlink(path: str, **options: int) -> None:
        deletes_in_place.append(copy.folder.exists())
        remove(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    copy.remove()
    assert deletes_in_place[:2] == [False, False]
    assert not copy.partial.exists()
