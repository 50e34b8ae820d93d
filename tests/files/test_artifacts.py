"""Keeping content: whole or not at all, once, and under a name that cannot escape."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from evalsvc.errors import ArtifactNotWritten
from evalsvc.files.artifacts import artifact_path, keep_content


def test_content_is_kept_under_its_digest_once(tmp_path: Path) -> None:
    sha256 = keep_content(tmp_path, b"grid")
    assert sha256 == hashlib.sha256(b"grid").hexdigest()
    path = artifact_path(tmp_path, sha256)
    assert path.read_bytes() == b"grid"
    before = path.stat().st_mtime_ns
    assert keep_content(tmp_path, b"grid") == sha256
    assert path.stat().st_mtime_ns == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(
        ArtifactNotWritten, match=r"4 bytes, cannot be written to .*: no space left on device; make room"
    ):
        keep_content(tmp_path, b"grid")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
