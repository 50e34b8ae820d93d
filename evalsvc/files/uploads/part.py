"""Writing a part of an upload: pieces are appended as they arrive, and counted once they are on the disk."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass

from evalsvc.errors import ChecksumMismatch, UploadConflict
from evalsvc.files.uploads.folder import UploadFolder
from evalsvc.files.uploads.stored import CONTENT, opened_file, translated_os_errors, write_offset

SYNC_BYTES = 8 << 20
"""Number of bytes after which pieces are flushed from memory to the disk. Larger flushes would delay the database."""

ALGORITHMS = ("sha256", "sha1")
"""Algorithms that the checksum of a part may use; tus requires sha1."""


@dataclass(frozen=True)
class Checksum:
    """The client's checksum of a part."""

    algorithm: str
    """Name of an algorithm in `ALGORITHMS`."""
    digest: bytes


class PartWriter:
    """Writer that appends one part to an upload, and locks the upload until `close`. Use from one thread at a time."""

    def __init__(
        self,
        uploads: UploadFolder,
        upload_id: str,
        owner: str | None,
        offset: int,
        checksum: Checksum | None = None,
        kept_bytes: int = 0,
    ) -> None:
        """Lock the upload and open its file. `kept_bytes` is the size of the uploaded checkpoints in the spool.

        Raises:
            UploadNotFound: see `UploadFolder.find`.
            UploadConflict: another request is writing to the upload, or the upload does not end at `offset`.
            DataDirectoryUnusable: the file cannot be opened.
        """
        self._uploads = uploads
        self._checksum = checksum
        self._kept_bytes = kept_bytes
        self._part_hash = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
        self._unsynced = 0
        with ExitStack() as stack, translated_os_errors(uploads.folder):
            locked = stack.enter_context(uploads.locked(upload_id, owner))
            self.upload = locked.upload
            self._offset_file = locked.offset_file
            self._require_offset(offset)
            self._hash = uploads.hash_of(locked.upload)
            if not locked.upload.is_verified:
                self._content = stack.enter_context(opened_file(CONTENT, os.O_WRONLY, locked.folder))
                os.ftruncate(self._content, offset)
            self._written = self._kept = offset
            stack.callback(uploads.arriving.pop, upload_id, None)
            self._open = stack.pop_all()

    @property
    def room(self) -> int:
        """The number of bytes until the announced size is reached."""
        return self.upload.length - self._written

    def require_space(self, size: int) -> None:
        """Raise StorageFull unless `size` more bytes fit."""
        self._uploads.require_space(self.upload.id, self._written + size, self._kept_bytes)

    def write(self, piece: bytes | bytearray) -> None:
        """Append at most `room` bytes.

        Raises:
            StorageFull: the disk, or the space for uploads, is full; earlier bytes are kept.
            DataDirectoryUnusable: the file cannot be written.
        """
        self.require_space(len(piece))
        self._uploads.arriving[self.upload.id] = self._written + len(piece)
        with translated_os_errors(self._uploads.folder):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.pwrite(self._content, rest, self._written + len(piece) - len(rest)) :]
            self._written += len(piece)
            for digest in (self._hash, self._part_hash):
                if digest is not None:
                    digest.update(piece)
            self._unsynced += len(piece)
            if self._unsynced >= SYNC_BYTES:
                self._sync()
                self._uploads.require_free_disk()

    def keep(self, *, complete: bool = True) -> int:
        """Count the written bytes, and return the new offset.

        `complete` says whether the whole part has arrived. An incomplete part with a checksum is not counted.

        Raises:
            ChecksumMismatch: the part does not match the client's checksum, and is not counted.
            StorageFull, DataDirectoryUnusable: see `write`.
        """
        with translated_os_errors(self._uploads.folder):
            if self._checksum is not None:
                self._require_checksum(complete)
                self._checksum = None
            if self._written > self._kept:
                self._sync()
            self._uploads.keep_hash(self.upload.id, self._kept, self._hash)
        return self._kept

    def close(self) -> None:
        """Release the lock, and close the files."""
        self._open.close()

    def _sync(self) -> None:
        """Flush the written bytes to the disk, and count them unless a checksum must be compared first."""
        os.fdatasync(self._content)
        self._unsynced = 0
        if self._checksum is None:
            write_offset(self._offset_file, self._written)
            self._kept = self._written

    def _require_offset(self, offset: int) -> None:
        if offset != self.upload.offset:
            raise UploadConflict(
                f"the part starts at byte {offset:,}, and upload {self.upload.id} has {self.upload.offset:,} bytes; "
                "send the part that starts there"
            )

    def _require_checksum(self, complete: bool) -> None:
        assert self._checksum is not None
        assert self._part_hash is not None
        if complete and self._part_hash.digest() == self._checksum.digest:
            return
        self._written, self._hash = self._kept, self._uploads.hash_of(self.upload)
        self._checksum = None
        if complete:
            raise ChecksumMismatch(
                f"the part from byte {self._kept:,} of upload {self.upload.id} has another {self._part_hash.name} than "
                "its Upload-Checksum says, and is not counted; send the part again"
            )
