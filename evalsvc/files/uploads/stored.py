"""An upload on the disk: a folder with a random name, which is the upload's id.

- `about.json`: the client's announcement; written once.
- `offset`: the number of bytes of `content` that are on the disk. A request that changes the upload locks this file;
  the kernel releases the lock when the process dies. The modification time is the time of the last new byte.
- `content`: the bytes. Bytes after `offset` do not count, and the next part overwrites them.
- `verified`: the name of `content` once all bytes have arrived with the announced SHA-256.

Files are opened by their name in the open folder, and links are never followed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from evalsvc.errors import DataDirectoryUnusable, StorageFull, UploadConflict, os_reason

UPLOAD_ID = re.compile(r"[0-9a-f]{32}")

LIFETIME = 86_400.0
"""Seconds without a new byte after which an upload expires."""

ABOUT, OFFSET, CONTENT, VERIFIED = "about.json", "offset", "content", "verified"

MAX_ABOUT = 64 << 10
"""Maximum number of bytes of `about.json` that are read."""

DIGITS = 20
"""Length of the file `offset` in bytes. The length is constant, so that one write replaces the number."""


@dataclass(frozen=True)
class StoredUpload:
    """The state of an upload on the disk."""

    id: str
    length: int
    """Announced size of the whole file in bytes."""
    sha256: str
    """Announced SHA-256 of the whole file in hexadecimal digits."""
    name: str | None
    """Name of the file on the client's side, for display; never used as a path."""
    owner: str | None
    """Name of the token that created the upload; None if the service had no tokens."""
    offset: int
    """Number of bytes on the disk."""
    is_verified: bool
    """Whether all bytes have arrived with the announced digest."""
    expires_at: datetime
    """Time from which the upload may be removed."""

    @property
    def remaining(self) -> int:
        """The number of bytes that have not arrived yet."""
        return self.length - self.offset

    @property
    def is_expired(self) -> bool:
        """Whether the upload may be removed."""
        return self.expires_at <= datetime.now(UTC)


def read_upload(folder: Path) -> StoredUpload | None:
    """Return the upload in a folder; None if a file is missing, damaged or a link."""
    try:
        with opened_folder(folder) as here:
            with opened_file(ABOUT, os.O_RDONLY, here) as file:
                about = json.loads(os.read(file, MAX_ABOUT))
            with opened_file(OFFSET, os.O_RDONLY, here) as file:
                grown, offset = os.fstat(file).st_mtime, int(os.pread(file, DIGITS, 0))
            is_verified = _size(VERIFIED, here) == about["length"]
            offset = about["length"] if is_verified else max(0, min(offset, about["length"], _size(CONTENT, here)))
            expires_at = datetime.fromtimestamp(grown + LIFETIME, UTC)
            return StoredUpload(id=folder.name, offset=offset, is_verified=is_verified, expires_at=expires_at, **about)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """Open the folder of an upload. Raises OSError, also for a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(name: str, flags: int, folder: int) -> Iterator[int]:
    """Open a file in an open folder. Raises OSError, also for a link."""
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lock_upload(offset_file: int, upload_id: str) -> None:
    """Lock an upload by its open file `offset`, without waiting.

    Raises:
        UploadConflict: another request has the lock.
    """
    try:
        fcntl.flock(offset_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UploadConflict(
            f"another request is writing to upload {upload_id}; ask for the offset with HEAD in a moment, and "
            "resume from there"
        ) from None


def write_offset(offset_file: int, offset: int) -> None:
    """Record that the first `offset` bytes are on the disk."""
    os.pwrite(offset_file, b"%0*d" % (DIGITS, offset), 0)


@contextmanager
def translated_os_errors(folder: Path) -> Iterator[None]:
    """Translate errors of the operating system to errors that say what to do.

    Raises:
        StorageFull: the disk, or the quota of the service's user, is full.
        DataDirectoryUnusable: any other error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise disk_full(os_reason(error)) from None
        raise DataDirectoryUnusable(
            f"uploads cannot be stored in {folder}: {os_reason(error)}; change the permissions of the folder, or "
            "choose another data folder with --data-dir (EVALSVC_DATA_DIR)"
        ) from None


def disk_full(reason: str) -> StorageFull:
    """Return the error for a disk without room for the rest of an upload."""
    return StorageFull(
        f"the disk of the data folder is full ({reason}); make room there and resume the upload: the bytes that "
        "HEAD /v1/uploads/{id} counts are kept"
    )


def _size(name: str, folder: int) -> int:
    """Return the size of a file in bytes; -1 for a missing file."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except FileNotFoundError:
        return -1
