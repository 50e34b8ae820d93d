"""Files that a client sends."""

import hashlib
import os
from pathlib import Path

import pytest

from evalsvc.errors import CheckpointChanged, InvalidRequest
from evalsvc.files.uploads.local import LocalFile


def test_a_file_is_read_in_parts_and_has_one_digest(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pt"
    path.write_bytes(b"weights" * 10)
    said = []
    with LocalFile(path) as file:
        assert file.sha256(lambda *report: said.append(report)) == hashlib.sha256(path.read_bytes()).hexdigest()
        parts = [file.part(offset, 30) for offset in (0, 30, 60, 70)]
        assert [len(part) for part in parts] == [30, 30, 10, 0]
        assert b"".join(parts) == path.read_bytes()
        assert (file.size, file.name) == (70, "epoch_1.pt")
    assert said == [("reading", 70, 70)]


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "no such file"), ("folder", "is a folder"), ("empty", "is empty"), ("pipe", "no file on a disk")],
)
def test_what_cannot_be_sent_is_told_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match=rf"{name}.*{words}.*; " if words == "no such file" else words):
        LocalFile(tmp_path / name)


def test_a_file_that_is_written_to_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pt"
    path.write_bytes(b"weights")
    with LocalFile(path) as file:
        file.require_unchanged()
        path.write_bytes(b"we")
        with pytest.raises(CheckpointChanged, match="once it is complete"):
            file.part(0, 7)


def test_a_name_that_cannot_be_shown_is_sent_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\udcffc.pt"
    path.write_bytes(b"weights")
    with LocalFile(path) as file:
        assert file.name == "a?b?c.pt"
