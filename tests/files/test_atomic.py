"""A file is there whole or not at all, whoever is interrupted when."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.files.atomic import open_regular, write_whole


@pytest.mark.parametrize(
    ("broken", "problem"), [("fsync", OSError(errno.ENOSPC, "No space left")), ("replace", KeyboardInterrupt())]
)
def test_what_cannot_be_finished_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, problem: BaseException
) -> None:
    """The disk is full, or the process is told to end."""
    (tmp_path / "a").write_bytes(b"before")
    monkeypatch.setattr(os, broken, Mock(side_effect=problem))
    with pytest.raises(type(problem)):
        write_whole(tmp_path / "a", b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"before")]


def test_the_name_is_given_after_the_content_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, a file that was renamed first is there and empty."""
    done: list[str] = []
    replace = os.replace

    def note_sync(descriptor: int) -> None:
        done.append(f"{os.fstat(descriptor).st_size} bytes")

    def note_name(partial: Path, target: Path) -> None:
        done.append("named")
        replace(partial, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_name)
    write_whole(tmp_path / "new" / "a", b"content")
    write_whole(tmp_path / "b", b"content", durable=False)
    assert done == ["7 bytes", "named", "named"]


@pytest.mark.parametrize(("asked", "expected"), [(0o600, 0o600), (0o666, 0o640)])
def test_who_may_read_it(tmp_path: Path, asked: int, expected: int) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"", mode=asked)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected


def test_content_is_kept_under_its_digest_once(tmp_path: Path) -> None:
    sha256 = keep_content(tmp_path, b"grid")
    assert sha256 == hashlib.sha256(b"grid").hexdigest()
    path = artifact_path(tmp_path, sha256)
    assert path.read_bytes() == b"grid"
    before = path.stat().st_mtime_ns
    assert keep_content(tmp_path, b"grid") == sha256
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_a_pipe_a_folder_or_a_link_is_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "a")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(OSError, match=r"no regular file|symbolic links"):
            open_regular(tmp_path / "a")
    assert len(os.listdir("/proc/self/fd")) == before, "the descriptor is closed"
