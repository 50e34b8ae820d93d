"""Kept files and outputs of shards that the service sends, in parts, to workers that cannot read its data folder.

A worker names a folder or a file relative to the data folder. Only names of kept files and of outputs are answered;
other files in the data folder, such as the database, are treated as missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from evalsvc.files.kept import ANSWERS, FILE_NAME, touch

STATISTICS = "statistics"

FOLDER = re.compile(rf"{STATISTICS}(/{ANSWERS}/[0-9a-f]{{64}})?")
PLACE = re.compile(rf"{STATISTICS}/({FILE_NAME.pattern})|outputs/[0-9]{{1,18}}/[0-9]{{1,18}}-[0-9]{{1,18}}")

PART_BYTES = 8 << 20
"""Bytes of a part, which bounds the memory that a large file takes in service and scheduler."""


@dataclass(frozen=True)
class Part:
    """A part of a file."""

    size: int
    """Size of the whole file in bytes."""
    sha256: str
    """Digest of the whole file."""
    data: bytes
    """At most PART_BYTES from the requested offset; empty at the end."""


class FileService(Protocol):
    """Interface to a service's data folder for a worker on another machine."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the kept files in a folder, without the folder; empty for a missing folder."""

    def part(self, place: str, offset: int | None) -> Part | None:
        """Return the part of a file from an offset; without an offset, only size and digest.

        None where the file is missing, unreadable, or not for workers.
        """


class ServedFiles(FileService):
    """Reader of the data folder in the service's process. Calls are independent and may run in any thread."""

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder

    def names(self, folder: str) -> list[str]:
        if not FOLDER.fullmatch(folder):
            return []
        try:
            files = os.listdir(self._folder / folder)
        except OSError:
            return []
        return [name for name in files if PLACE.fullmatch(f"{folder}/{name}")]

    def part(self, place: str, offset: int | None) -> Part | None:
        if not PLACE.fullmatch(place) or (offset or 0) < 0:
            return None
        path = self._folder / place
        try:
            if offset is None and place.startswith(f"{STATISTICS}/{ANSWERS}/"):
                touch(path)
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return None
                sha256 = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
                if offset is None:
                    return Part(status.st_size, sha256, b"")
                stream.seek(offset)
                return Part(status.st_size, sha256, stream.read(PART_BYTES))
        except OSError:
            return None


@lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Hash a file. The other arguments invalidate the cache when the file changes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
