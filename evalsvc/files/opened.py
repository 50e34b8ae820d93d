"""Data files that are opened first and checked then, by what the kernel says of the open file.

Between the look at a path and its opening, a link may be put in the place of a file or folder on the way. What is read
afterwards is the very file that was checked, whatever becomes of its name meanwhile.
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
"""Raises unless a path without links, of what is open, may be read; the second argument is what messages call it."""


def anywhere(real: Path, shown: str) -> None:
    """Allow every file: for paths that no submitter chose."""


@dataclass(frozen=True)
class OpenFile:
    """A data file that was checked when it was open. Two of them are equal if they are one file in one state."""

    real: Path
    """Where the file lies, without links."""
    version: tuple[int, ...]
    """What the kernel says of its content: device, inode, size, and both times of change."""
    stream: io.BufferedReader = field(compare=False)

    @property
    def name(self) -> str:
        """A path that leads to the open file, for libraries that take no stream."""
        return str(OPEN_FILES / str(self.stream.fileno())) if OPEN_FILES.is_dir() else str(self.real)


def open_file(path: Path, what: str, allow: Allow) -> OpenFile:
    """Open a data file and check what was opened; `what` is how messages call it. Close its stream.

    Raises:
        InvalidData: the file is missing, cannot be read, or is no regular file; or what `allow` raises.
    """
    descriptor = descriptor_of(path, what, os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        real = real_path(path, descriptor)
        allow(real, str(path))
        if stat.S_ISDIR(found.st_mode):
            raise InvalidData(f"the {what} {path} is a folder; give a file")
        if not stat.S_ISREG(found.st_mode):
            raise InvalidData(f"the {what} {path} is not a regular file; give a file on a disk")
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return OpenFile(real, version, stream)


@contextmanager
def opened_folder(path: Path, what: str, allow: Allow) -> Iterator[Path]:
    """Open a data folder, check what was opened, and give a path that leads to it; see `open_file`."""
    descriptor = descriptor_of(path, what, os.O_DIRECTORY)
    try:
        allow(real_path(path, descriptor), str(path))
        yield OPEN_FILES / str(descriptor) if OPEN_FILES.is_dir() else path
    finally:
        os.close(descriptor)


def descriptor_of(path: Path, what: str, flags: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError:
        raise InvalidData(f"the {what} {path} does not exist or cannot be read; check the path") from None


def real_path(path: Path, descriptor: int) -> Path:
    """Where an open file lies. Without the kernel's word for it, the path is all that can be asked."""
    if not OPEN_FILES.is_dir():
        return path.resolve()
    return Path(os.readlink(OPEN_FILES / str(descriptor)).removesuffix(" (deleted)"))
