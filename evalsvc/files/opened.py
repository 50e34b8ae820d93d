"""Data files that are opened first and then checked, by the kernel's information about the open file.

Between checking a path and opening it, a link may replace a file or folder on the path. Here, the file that is read is
the file that was checked, even if its name changes in between.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from evalsvc.errors import InvalidData

OPEN_FILES = Path("/proc/self/fd")

Allow = Callable[[Path, str], None]
"""Function that raises unless the real path of an open file may be read; the second argument names the file in
messages.
"""


def anywhere(real: Path, shown: str) -> None:
    """Allow every file, for paths that no submitter chose."""


@dataclass(frozen=True)
class OpenFile:
    """Data file that was checked after opening. Two are equal if they are the same file in the same state."""

    real: Path
    """Path of the file without links."""
    version: tuple[int, ...]
    """State of the content according to the kernel: device, inode, size, and both times of change."""
    stream: io.BufferedReader = field(compare=False)

    @property
    def name(self) -> str:
        """Path that leads to the open file, for libraries that take no stream."""
        return str(OPEN_FILES / str(self.stream.fileno())) if OPEN_FILES.is_dir() else str(self.real)


def open_file(path: Path, what: str, allow: Allow) -> OpenFile:
    """Open a data file, called `what` in messages, and check the open file. The caller closes the stream.

    Raises:
        InvalidData: the file is missing, cannot be read, or is no regular file. Or as `allow` raises.
    """
    descriptor = descriptor_of(path, what, os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        real = real_path(path, descriptor)
        allow(real, str(path))
        if stat.S_ISDIR(status.st_mode):
            raise InvalidData(f"the {what} {path} is a folder; give a file")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidData(f"the {what} {path} is not a regular file; give a file on a disk")
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return OpenFile(real, version, stream)


@contextmanager
def opened_folder(path: Path, what: str, allow: Allow) -> Iterator[Path]:
    """Open a data folder, check it, and yield a path that leads to it; see `open_file`."""
    descriptor = descriptor_of(path, what, os.O_DIRECTORY)
    try:
        allow(real_path(path, descriptor), str(path))
        yield OPEN_FILES / str(descriptor) if OPEN_FILES.is_dir() else path
    finally:
        os.close(descriptor)


def descriptor_of(path: Path, what: str, flags: int) -> int:
    """Open a path, called `what` in messages, and return the descriptor. Raises InvalidData."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError:
        raise InvalidData(f"the {what} {path} does not exist or cannot be read; check the path") from None


def real_path(path: Path, descriptor: int) -> Path:
    """Return the path of an open file. Where the kernel does not report it, resolve the given path."""
    if not OPEN_FILES.is_dir():
        return path.resolve()
    return Path(os.readlink(OPEN_FILES / str(descriptor)).removesuffix(" (deleted)"))
