"""A file that a client sends: read in parts, and checked for changes during the upload."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from evalsvc.errors import CheckpointChanged, InvalidRequest, os_reason

BLOCK_BYTES = 8 << 20
"""Number of bytes that are read at a time."""

Report = Callable[[str, int, int], None]
"""Function that is called with the activity (`reading` or `sending`), the bytes done and the size of the file."""


class LocalFile:
    """A file of this machine, open for reading. Use it as a context manager."""

    def __init__(self, path: str | Path) -> None:
        """Open the file.

        Raises:
            InvalidRequest: the file does not exist, cannot be read, is empty, or is a folder or another special file.
        """
        self.path = Path(path).expanduser()
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"{self.path} cannot be read: {os_reason(error)}; give the path of a file of this machine"
            ) from None
        self._stat = os.fstat(self._file)
        self.size = self._stat.st_size
        problem = _problem(self._stat)
        if problem is not None:
            self.close()
            raise InvalidRequest(f"{self.path} {problem}")

    @property
    def name(self) -> str:
        """The name that the service displays, with `?` for characters that cannot be displayed."""
        return "".join(letter if letter.isprintable() else "?" for letter in self.path.name)[:200]

    def sha256(self, report: Report | None = None) -> str:
        """Return the SHA-256 of the whole file in hexadecimal digits.

        Raises:
            CheckpointChanged: the file changed while it was read.
        """
        digest, done = hashlib.sha256(), 0
        while block := os.pread(self._file, BLOCK_BYTES, done):
            digest.update(block)
            done += len(block)
            if report is not None:
                report("reading", done, self.size)
        self.require_unchanged()
        return digest.hexdigest()

    def part(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from an offset; no bytes at the end of the file.

        Raises:
            CheckpointChanged: the file was truncated since it was opened.
        """
        part = os.pread(self._file, min(size, self.size - offset), offset)
        if len(part) < min(size, self.size - offset):
            self.require_unchanged()
        return part

    def require_unchanged(self) -> None:
        """Raise CheckpointChanged if the file was changed since it was opened."""
        now = os.fstat(self._file)
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise CheckpointChanged(
                f"{self.path} was written to while it was sent; submit it once it is complete, or a copy of it"
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _problem(status: os.stat_result) -> str | None:
    """Return the reason why a file cannot be sent, with a remedy; None if the file can be sent."""
    if stat.S_ISDIR(status.st_mode):
        return (
            "is a folder, and one file can be uploaded; give the file with the weights, or post the folder by a path "
            "that the service can read, without --upload"
        )
    if not stat.S_ISREG(status.st_mode):
        return "is no file on a disk; give the file with the weights"
    if status.st_size == 0:
        return "is empty; submit the file once it is written"
    return None
