"""Folders of uploads that are damaged or tampered with are no uploads, and no error of the service."""

import json
from pathlib import Path

import pytest

from evalsvc.files.uploads.folder import UploadFolder
from evalsvc.files.uploads.stored import read_upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    uploads = UploadFolder(tmp_path / "uploads", limit=1_000_000)
    return uploads.folder / uploads.create(10, "0" * 64, "a.pt", None, kept_bytes=0).id


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("about.json", b""),
        ("about.json", b"[]"),
        ("about.json", b'{"length": 10}'),
        ("about.json", b"\xff"),
        ("about.json", json.dumps({"length": 10, "sha256": "", "name": "", "owner": "", "offset": 9}).encode()),
        ("offset", b""),
        ("offset", b"ten"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_damaged(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert read_upload(folder) is None


@pytest.mark.parametrize(("text", "offset"), [(b"-0000000000000000005", 0), (b"00000000000000000099", 0)])
def test_an_offset_is_never_more_than_the_bytes_that_are_there(folder: Path, text: bytes, offset: int) -> None:
    (folder / "offset").write_bytes(text)
    found = read_upload(folder)
    assert found is not None
    assert found.offset == offset


@pytest.mark.parametrize("file", ["about.json", "offset"])
def test_a_link_in_the_place_of_a_file(folder: Path, file: str) -> None:
    (folder / file).rename(folder / "moved")
    (folder / file).symlink_to("moved")
    assert read_upload(folder) is None


def test_nothing_there(tmp_path: Path) -> None:
    assert read_upload(tmp_path / "nowhere") is None
