"""Files that are whole or absent after an `accident`, and read only if no `worker` put a link or a pipe in their place.

They are written under another name in the same folder, then renamed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Suffix of a file that is being written."""

FOR_GROUP = 0o640
"""Permissions of files that workers read, which may run as another user of the service's group."""


class FileLost(Exception):
    """A file of the data folder is missing, damaged or unreadable; the message names the file and the reason."""


@contextmanager
def replacing(target: Path, *, durable: bool = True, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `target` when the block ends without an error; create the folders above it.
    With `durable`, the content is on the disk before the rename, so that a power cut leaves no empty file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(partial, target)
    except BaseException:  # also when the process is told to end
        with suppress(OSError):
            partial.unlink()
        raise


def write_whole(target: Path, content: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    with replacing(target, durable=durable, mode=mode) as stream:
        stream.write(content)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; raise OSError for a link, a pipe or a folder that a worker put in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(descriptor, "rb")
