"""All uploads of a service: their number and size, their owners, and their expiry."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evalsvc.errors import CheckpointChanged, StorageFull, UploadConflict, UploadNotFound
from evalsvc.files.atomic import write_whole
from evalsvc.files.uploads.stored import (
    ABOUT,
    CONTENT,
    DIGITS,
    LIFETIME,
    OFFSET,
    UPLOAD_ID,
    VERIFIED,
    StoredUpload,
    disk_full,
    lock_upload,
    opened_file,
    opened_folder,
    read_upload,
    translated_os_errors,
)

MAX_UPLOADS, MAX_UPLOADS_OF_OWNER = 64, 16
"""Maximum number of simultaneous uploads of all tokens and of one token, including finished uploads that are not posted
yet."""

SWEEP_EVERY = 600.0
"""Seconds between two sweeps of expired uploads; `create` sweeps too."""

UNFINISHED_SECONDS = 3600.0
"""Age in seconds from which a folder without `about.json` is removed: the service was killed while creating it."""

RESERVE_BYTES = 256 << 20
"""Bytes of the disk that uploads leave free for the database and for results."""


@dataclass(frozen=True)
class LockedUpload:
    """An upload that is locked against changes by other requests."""

    upload: StoredUpload
    folder: int
    """Descriptor of the upload's folder."""
    offset_file: int
    """Descriptor of the file `offset`."""


class UploadFolder:
    """The folder of a service's uploads. Methods may run simultaneously in several threads."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use `folder`. `limit` is the maximum number of bytes of uploads and of checkpoints from uploads together."""
        self.folder = folder
        self._limit = limit
        self._creating = threading.Lock()
        self._hashes: dict[str, tuple[int, hashlib._Hash]] = {}
        """Number of bytes from the start of an upload that this process has received, and their hash, by id."""
        self.arriving: dict[str, int] = {}
        """Number of bytes of an upload that a part is being written to, by id."""

    def create(self, length: int, sha256: str, name: str | None, owner: str | None, kept_bytes: int) -> StoredUpload:
        """Create an upload.

        Args:
            length: size of the whole file in bytes, at least 1.
            sha256: digest of the whole file in lower-case hexadecimal digits.
            name: name of the file on the client's side.
            owner: name of the client's token.
            kept_bytes: size of the uploaded checkpoints in the spool, in bytes.

        Raises:
            StorageFull: the bytes, the number of uploads or the disk leave no room.
            DataDirectoryUnusable: the folder cannot be written.
        """
        with self._creating, translated_os_errors(self.folder):
            self.sweep()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            uploads = list(self._all())
            self._require_room(uploads, length, owner, kept_bytes)
            for gone in self._hashes.keys() - {upload.id for upload in uploads}:
                del self._hashes[gone]
            upload_id = secrets.token_hex(16)
            folder = self.folder / upload_id
            folder.mkdir(mode=0o700)
            write_whole(folder / OFFSET, b"0" * DIGITS, durable=False)
            write_whole(folder / CONTENT, b"", durable=False)
            about = {"length": length, "sha256": sha256, "name": name, "owner": owner}
            write_whole(folder / ABOUT, json.dumps(about).encode())
            return self.find(upload_id, owner)

    def find(self, upload_id: str, owner: str | None) -> StoredUpload:
        """Return an upload of this owner.

        Raises:
            UploadNotFound: no such upload, or the upload expired or belongs to another owner.
        """
        upload = read_upload(self.folder / upload_id) if UPLOAD_ID.fullmatch(upload_id) else None
        if upload is None or upload.owner != owner or upload.is_expired:
            raise UploadNotFound(
                f"there is no upload {upload_id[:64]!r}: it expired, was deleted, became a checkpoint, or belongs to "
                "another token; create a new upload with POST /v1/uploads"
            )
        return upload

    def of_owner(self, owner: str | None, sha256: str | None = None) -> list[StoredUpload]:
        """Return the uploads of an owner, or only those with the digest `sha256`; the one with the most bytes first."""
        current = (upload for upload in self._all() if upload.owner == owner and not upload.is_expired)
        chosen = [upload for upload in current if sha256 in (None, upload.sha256)]
        return sorted(chosen, key=lambda upload: -upload.offset)

    def path(self, upload: StoredUpload) -> Path:
        """Return the path of a verified upload's file."""
        return self.folder / upload.id / VERIFIED

    def verified(self, sha256: str, owner: str | None) -> StoredUpload | None:
        """Return a complete upload of the file with a digest after verifying it; None if there is none.

        Raises:
            UploadConflict, CheckpointChanged: see `verify`.
        """
        whole = next((upload for upload in self.of_owner(owner, sha256) if not upload.remaining), None)
        return None if whole is None else self.verify(whole.id, owner)

    def verify(self, upload_id: str, owner: str | None) -> StoredUpload:
        """Compare the digest of an upload with the announced digest, once all bytes have arrived.

        The file is read unless this process has received all of its bytes.

        Raises:
            UploadNotFound: see `find`.
            UploadConflict: bytes are missing, or another request is writing to the upload.
            CheckpointChanged: the digests differ; the upload is deleted.
        """
        with translated_os_errors(self.folder), self.locked(upload_id, owner) as locked:
            upload = locked.upload
            if upload.is_verified:
                return upload
            if upload.remaining:
                raise UploadConflict(
                    f"upload {upload_id} has {upload.offset:,} of {upload.length:,} bytes; send the missing bytes first"
                )
            with opened_file(CONTENT, os.O_RDWR, locked.folder) as content:
                os.ftruncate(content, upload.length)
                self._require_digest(upload, content)
                # The identity of a file includes its time, and must be the same for every upload of the same content.
                os.utime(content, ns=(0, 0))
                os.fsync(content)
            os.rename(CONTENT, VERIFIED, src_dir_fd=locked.folder, dst_dir_fd=locked.folder)
            os.fsync(locked.folder)
            os.utime(locked.offset_file)
            self._hashes.pop(upload_id, None)
            return self.find(upload_id, owner)

    def delete(self, upload_id: str, owner: str | None) -> None:
        """Delete an upload with its bytes.

        Raises:
            UploadNotFound: see `find`.
            UploadConflict: another request is writing to the upload.
        """
        with translated_os_errors(self.folder), self.locked(upload_id, owner):
            self._remove(upload_id)

    def sweep(self) -> int:
        """Remove expired uploads, and folders that a killed service left incomplete; return their number."""
        removed = 0
        for name in _names(self.folder):
            upload = read_upload(self.folder / name) if UPLOAD_ID.fullmatch(name) else None
            if upload is None:
                removed += _remove_unfinished(self.folder / name)
            elif upload.is_expired:
                with suppress(UploadNotFound, UploadConflict), self._lock_of(name):
                    self._remove(name)
                    removed += 1
        return removed

    @contextmanager
    def locked(self, upload_id: str, owner: str | None) -> Iterator[LockedUpload]:
        """Lock an upload against changes by other requests.

        Raises:
            UploadNotFound: see `find`.
            UploadConflict: another request is writing to the upload.
        """
        self.find(upload_id, owner)
        with self._lock_of(upload_id) as (folder, offset_file):
            yield LockedUpload(self.find(upload_id, owner), folder, offset_file)

    def hash_of(self, upload: StoredUpload) -> hashlib._Hash | None:
        """Return the hash of the bytes that have arrived; None unless this process has received all of them."""
        if upload.offset == 0:
            return hashlib.sha256()
        known, digest = self._hashes.get(upload.id, (0, None))
        return digest.copy() if digest is not None and known == upload.offset else None

    def keep_hash(self, upload_id: str, offset: int, digest: hashlib._Hash | None) -> None:
        """Keep the hash of the first `offset` bytes for the next part; None if this process did not receive all."""
        if digest is None:
            self._hashes.pop(upload_id, None)
        else:
            self._hashes[upload_id] = offset, digest

    def require_space(self, upload_id: str, size: int, kept_bytes: int) -> None:
        """Raise StorageFull unless the first `size` bytes of an upload fit next to all bytes that have arrived."""
        others = [upload for upload in self._all() if upload.id != upload_id]
        used = sum(max(upload.offset, self.arriving.get(upload.id, 0)) for upload in others)
        if used + size + kept_bytes > self._limit:
            raise StorageFull(
                f"{size:,} bytes of the upload do not fit: EVALSVC_UPLOAD_BYTES is {self._limit:,}, other uploads have "
                f"{used:,} of these, and uploaded checkpoints that are still needed {kept_bytes:,}; resume the upload "
                "once evaluations have ended or uploads are deleted, or have the operator raise EVALSVC_UPLOAD_BYTES"
            )

    def require_free_disk(self) -> None:
        """Raise StorageFull if less than `RESERVE_BYTES` of the disk are free."""
        if shutil.disk_usage(self.folder).free < RESERVE_BYTES:
            raise disk_full(f"less than {RESERVE_BYTES:,} bytes are free")

    @contextmanager
    def _lock_of(self, upload_id: str) -> Iterator[tuple[int, int]]:
        """Lock an upload, and yield the descriptors of its folder and of its file `offset`."""
        path = self.folder / upload_id
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(opened_folder(path))
                offset_file = stack.enter_context(opened_file(OFFSET, os.O_RDWR, folder))
                lock_upload(offset_file, upload_id)
                os.stat(path)  # the folder may have been removed between opening and locking
            except FileNotFoundError:
                raise UploadNotFound(f"upload {upload_id} is gone; create a new upload with POST /v1/uploads") from None
            yield folder, offset_file

    def _all(self) -> Iterator[StoredUpload]:
        for name in _names(self.folder):
            if UPLOAD_ID.fullmatch(name) and (upload := read_upload(self.folder / name)) is not None:
                yield upload

    def _require_digest(self, upload: StoredUpload, content: int) -> None:
        """Raise CheckpointChanged, and delete the upload, if its digest is not the announced digest."""
        digest = self.hash_of(upload)
        if digest is None:
            with open(content, "rb", closefd=False) as stream:
                stream.seek(0)
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            sha256 = digest.hexdigest()
        if sha256 != upload.sha256:
            self._remove(upload.id)
            raise CheckpointChanged(
                f"upload {upload.id} ({upload.name or 'without a name'}) arrived with sha256 {sha256}, and "
                f"{upload.sha256} was announced; the upload is deleted: check that nothing writes to the file, and "
                "send the file again"
            )

    def _require_room(self, uploads: Sequence[StoredUpload], length: int, owner: str | None, kept_bytes: int) -> None:
        of_owner = sum(upload.owner == owner for upload in uploads)
        if of_owner >= MAX_UPLOADS_OF_OWNER or len(uploads) >= MAX_UPLOADS:
            whose, number = (
                ("of this client", of_owner) if of_owner >= MAX_UPLOADS_OF_OWNER else ("in all", len(uploads))
            )
            raise StorageFull(
                f"there are {number} uploads {whose}, which is the limit; finish and post them, delete some with "
                f"DELETE /v1/uploads/{{id}}, or wait: an upload expires {LIFETIME / 3600:g} hours after its last byte"
            )
        used = sum(upload.offset for upload in uploads)
        # Bytes that other owners have announced do not count: they may never come.
        reserved = sum(upload.remaining for upload in uploads if upload.owner == owner)
        if used + reserved + kept_bytes + length > self._limit:
            raise StorageFull(
                f"{length:,} bytes do not fit: EVALSVC_UPLOAD_BYTES is {self._limit:,}, uploads that are not posted "
                f"yet have {used:,} of these, your unfinished uploads still need {reserved:,}, and uploaded "
                f"checkpoints that are still needed have {kept_bytes:,}; wait for evaluations to end, delete uploads, "
                "or have the operator raise EVALSVC_UPLOAD_BYTES"
            )
        free = shutil.disk_usage(self.folder).free - reserved
        if free - length < RESERVE_BYTES:
            raise StorageFull(
                f"{length:,} bytes do not fit on the disk of the data folder, where {max(0, free - RESERVE_BYTES):,} "
                "are free for uploads; have the operator make room there, or wait for evaluations to end"
            )

    def _remove(self, upload_id: str) -> None:
        """Remove a folder. It is renamed first, so an interrupted removal leaves no damaged upload."""
        self._hashes.pop(upload_id, None)
        gone = self.folder / f"{upload_id}.gone"
        (self.folder / upload_id).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _remove_unfinished(path: Path) -> bool:
    """Remove a folder that is not an upload, unless it is being created; return whether it was removed."""
    try:
        if path.suffix != ".gone" and time.time() - path.lstat().st_mtime < UNFINISHED_SECONDS:
            return False
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
