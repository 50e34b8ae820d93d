"""Opening files whose paths a `submitter` chose: one rule for what may be read, and one way to open.

Between checking a path and opening it, a link may replace a file or folder on the path. So a file is opened first, and
the rule is applied to the path that the kernel reports for the open file. Where the kernel reports none, the path
itself is checked.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from evalsvc.errors import EvalsvcError, InvalidData

OPEN_FILES = Path("/proc/self/fd")

NEVER = (Path("/proc"), Path("/sys"))
"""Folders that are never read: they hold the environments and memory of processes."""

Allow = Callable[[Path, str], None]
"""Function that raises unless a real path may be read; the second argument names the file in messages."""


def anywhere(real: Path, shown: str) -> None:
    """Allow every file, for paths that no submitter chose."""


@dataclass(frozen=True)
class ReadRule:
    """Rule for which files may be read, as an `Allow`: the innermost of these folders around a file decides."""

    roots: tuple[Path, ...]
    closed: tuple[Path, ...] = ()
    """Folders and files that may not be read, next to `NEVER`."""
    unnamed: tuple[Path, ...] = ()
    """Folders that may be read too, and that messages do not name."""
    error: type[EvalsvcError] = InvalidData

    def __call__(self, real: Path, shown: str) -> None:
        nearest_open, nearest_closed = (
            max((len(folder.parts) for item in folders if real.is_relative_to(folder := item.resolve())), default=0)
            for folders in ((*self.roots, *self.unnamed), (*NEVER, *self.closed))
        )
        if nearest_open <= nearest_closed:
            roots = ", ".join(map(str, self.roots)) or "none"
            raise self.error(
                f"{shown!r} is, or links, outside the allowed folders ({roots}), or into evalsvc's data folder or "
                "keys; move the file, or ask the operator to add its folder to EVALSVC_ROOTS"
            )


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
        return str(path_of(self.stream.fileno(), self.real))


def open_file(path: Path, what: str, allow: Allow) -> OpenFile:
    """Open a data file, called `what` in messages, and check the open file. The caller closes the stream."""
    descriptor, real = _open_data(path, what, allow)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder; give a file" if stat.S_ISDIR(status.st_mode) else "not a regular file; give a file on a disk"
        raise InvalidData(f"the {what} {path} is {kind}")
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return OpenFile(real, version, os.fdopen(descriptor, "rb"))


@contextmanager
def opened_folder(path: Path, what: str, allow: Allow) -> Iterator[Path]:
    """Open a data folder, check it, and yield a path that leads to it."""
    descriptor, real = _open_data(path, what, allow, os.O_DIRECTORY)
    try:
        yield path_of(descriptor, real)
    finally:
        os.close(descriptor)


def open_checked(path: Path, allow: Allow, flags: int = 0) -> tuple[int, Path]:
    """Open a path without waiting for writers of a pipe; return the descriptor and the path without links."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    try:
        link = OPEN_FILES / str(descriptor)
        real = Path(os.readlink(link).removesuffix(" (deleted)")) if OPEN_FILES.is_dir() else path.resolve()
        allow(real, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, real


def path_of(descriptor: int, real: Path) -> Path:
    """Return a path that leads to an open file or folder, whatever becomes of its name."""
    return OPEN_FILES / str(descriptor) if OPEN_FILES.is_dir() else real


def _open_data(path: Path, what: str, allow: Allow, flags: int = 0) -> tuple[int, Path]:
    try:
        return open_checked(path, allow, flags)
    except OSError:
        raise InvalidData(f"the {what} {path} does not exist or cannot be read; check the path") from None
