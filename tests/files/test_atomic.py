"""A file is there whole or not at all, whoever is interrupted when."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.files.atomic import replacing, write_whole


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_what_cannot_be_finished_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").write_bytes(b"before")
    monkeypatch.setattr(os, broken, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"before")]


def test_a_process_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    def stopped() -> None:
        with replacing(tmp_path / "a") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


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
