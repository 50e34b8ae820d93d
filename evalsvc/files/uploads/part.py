"""A part of an upload as it arrives: written in pieces, and counted once the pieces are on the disk."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass

from evalsvc.errors import ChecksumMismatch, UploadConflict
from evalsvc.files.uploads.folder import UploadFolder
from evalsvc.files.uploads.stored import CONTENT, opened_file, translated_os_errors, write_offset

SYNC_BYTES = 8 << 20
"""Bytes after which pieces go from memory to the disk. More at a time would make the database wait for the disk."""

ALGORITHMS = ("sha256", "sha1")
"""Digests that a part may come with; tus asks for sha1."""


@dataclass(frozen=True)
class Checksum:
    """The digest that a client gives a part."""

    algorithm: str
    """One of `ALGORITHMS`."""
    digest: bytes


class PartWriter:
    """Appends one part to an upload, which nobody else changes until `close`. Used by one thread at a time."""

    def __init__(
        self, uploads: UploadFolder, upload_id: str, owner: str | None, offset: int, checksum: Checksum | None = None
    ) -> None:
        """Lock the upload and open its file.

        Raises:
            UploadNotFound: see `UploadFolder.find`.
            UploadConflict: another request is writing to the upload, or the upload does not end at `offset`.
            DataDirectoryUnusable: the file cannot be opened.
        """
        self._uploads = uploads
        self._checksum = checksum
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
            self._open = stack.pop_all()

    @property
    def room(self) -> int:
        """Bytes that the upload still takes."""
        return self.upload.length - self._written

    def write(self, piece: bytes | bytearray) -> None:
        """Append at most `room` bytes.

        Raises:
            StorageFull: the disk is full; what was written before is kept.
            DataDirectoryUnusable: the disk refuses to write.
        """
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
        """Count what was written; return the new offset.

        `complete`: whether the whole part has arrived. Half a part with a checksum is not counted.

        Raises:
            ChecksumMismatch: the part has another digest than the client gave; the part is not counted.
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
        """Let others at the upload."""
        self._open.close()

    def _sync(self) -> None:
        """Have the disk take what was written, then count that, unless a checksum is still to be compared."""
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
