"""Files that a `submitter` sends in parts, until each becomes a checkpoint or a file of one.

An upload is one file, whose name has its owner, the announced SHA-256 and the announced length. The size of the file is
the number of bytes that have arrived, so a service that was killed goes on where the disk is. A verified upload has the
modification time 0: the identity of a checkpoint includes the time, and must be the same whenever the content is sent.
The time of the last change of the file's inode decides when an upload expires.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from evalsvc.errors import (
    CheckpointChanged,
    ChecksumMismatch,
    DataDirectoryUnusable,
    StorageFull,
    UploadConflict,
    UploadNotFound,
    os_reason,
)
from evalsvc.files.manifest import BEGIN, MAX_BYTES, read_manifest

MAX_UPLOADS, MAX_UPLOADS_OF_OWNER = 64, 16
"""Maximum number of unfinished uploads of all tokens and of one token."""

MAX_KEPT, MAX_KEPT_OF_OWNER = 4000, 1200
"""Maximum number of uploads that are not posted yet, finished ones included: those of a folder are posted together."""

LIFETIME = 86_400.0
"""Seconds without a new byte after which an upload expires."""

SWEEP_EVERY = 600.0
"""Seconds between two sweeps of expired uploads; `create` sweeps too."""

RESERVE_BYTES = 256 << 20
"""Bytes of the disk that uploads leave free for the database and for results."""

SYNC_BYTES = 8 << 20
"""Number of bytes after which bytes are flushed from memory to the disk. Larger flushes would delay the database."""

_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}-[1-9][0-9]{0,15}")


@dataclass(frozen=True)
class Upload:
    """The state of an upload on the disk."""

    path: Path
    owner: str
    """Digest of the name of the token that created the upload."""
    sha256: str
    length: int
    """Announced SHA-256 and size of the whole file."""
    offset: int
    """Number of bytes that have arrived."""
    is_verified: bool
    """Whether all bytes have arrived with the announced digest."""
    expires_at: datetime
    """Time from which the upload may be removed."""

    @property
    def remaining(self) -> int:
        return self.length - self.offset

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= datetime.now(UTC)


@dataclass(frozen=True)
class Sent:
    """The finished uploads that a post names: one file, or the manifest of a folder with the files of the folder."""

    upload: Upload
    """The upload with the digest that the post names."""
    files: Mapping[str, Upload] | None = None
    """Uploads of a folder's files by name, without the missing ones; None for a single file."""
    missing: tuple[str, ...] = ()
    """Names of the files of a folder that were not sent, or not to their end."""

    @property
    def size(self) -> int:
        return self.upload.length if self.files is None else sum(file.length for file in self.files.values())

    @property
    def names(self) -> set[str]:
        """Names of the files of a folder, and of its subfolders."""
        names = {*(self.files or ()), *self.missing}
        return names | {name.partition("/")[0] for name in names}

    @property
    def all(self) -> set[Upload]:
        return {self.upload, *(self.files or {}).values()}

    def paths(self, name: str) -> dict[str, Path]:
        """Return the path of each upload by the name that its file gets, in the place that is called `name`."""
        if self.files is None:
            return {name: self.upload.path}
        return {f"{name}/{inside}": file.path for inside, file in self.files.items()}


class Uploads:
    """The uploads of a service. Methods may run simultaneously in several threads."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use `folder`. `limit` is the maximum number of bytes of uploads and of checkpoints from uploads together."""
        self.folder = folder
        self._limit = limit
        self.growing = threading.Lock()
        """Lock to hold from a check of the space until the space is taken."""

    def create(self, owner: str | None, sha256: str, length: int, kept_bytes: int) -> Upload:
        """Create an upload, or return that of the same file. `kept_bytes` are uploaded checkpoints in the spool."""
        with self.growing, _translated_os_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sweep()
            with suppress(UploadNotFound):
                if (upload := self.find(owner, sha256)).length == length:
                    os.utime(upload.path, ns=(0, upload.path.lstat().st_mtime_ns))  # expires a day from now
                    return self.find(owner, sha256)
                self.delete(owner, sha256)
            uploads, key = list(self._all()), _key_of(owner)
            of_owner = [upload for upload in uploads if upload.owner == key]
            for number, limit, whose in (
                (sum(upload.remaining > 0 for upload in of_owner), MAX_UPLOADS_OF_OWNER, "of this client"),
                (sum(upload.remaining > 0 for upload in uploads), MAX_UPLOADS, "in all"),
                (len(of_owner), MAX_KEPT_OF_OWNER, "of this client"),
                (len(uploads), MAX_KEPT, "in all"),
            ):
                if number >= limit:
                    raise StorageFull(
                        f"there are {number} uploads {whose}, which is the limit; finish and post them, or wait: an "
                        f"upload expires {LIFETIME / 3600:g} hours after its last byte"
                    )
            # Bytes that other owners have announced do not count: they may never come.
            self.require_space(length, kept_bytes, reserved=sum(upload.remaining for upload in of_owner))
            os.close(os.open(self.folder / f"{key}-{sha256}-{length}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return self.find(owner, sha256)

    def find(self, owner: str | None, sha256: str) -> Upload:
        """Return an owner's upload of a file; raise UploadNotFound if there is none or if it expired."""
        for upload in self._all():
            if (upload.owner, upload.sha256) == (_key_of(owner), sha256) and not upload.is_expired:
                return upload
        raise UploadNotFound(
            f"there is no upload {sha256[:64]!r}: it expired, became a checkpoint, or belongs to another token; create "
            "a new upload with POST /v1/uploads"
        )

    @contextmanager
    def locked(self, upload: Upload) -> Iterator[tuple[Upload, int]]:
        """Lock an upload until the block or the process ends; yield its new state and its file's descriptor."""
        with _translated_os_errors(self.folder), ExitStack() as stack:
            try:
                file = os.open(upload.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The file may have been removed, and created again, between opening and locking.
                is_current = os.path.samestat(os.fstat(file), upload.path.lstat())
            except BlockingIOError:
                raise UploadConflict(
                    f"another request is writing to upload {upload.sha256}; ask for the offset with HEAD in a moment, "
                    "and resume from there"
                ) from None
            except FileNotFoundError:
                is_current = False
            if not is_current:
                raise UploadNotFound(f"upload {upload.sha256} is gone; create a new upload with POST /v1/uploads")
            yield _upload_at(upload.path, os.fstat(file)), file

    def verify(self, owner: str | None, sha256: str) -> Upload:
        """Compare the digest of an upload with the announced digest, once all bytes have arrived."""
        with self.locked(self.find(owner, sha256)) as (upload, file):
            if upload.remaining:
                raise UploadConflict(
                    f"upload {sha256} has {upload.offset:,} of {upload.length:,} bytes; send the missing bytes first"
                )
            if not upload.is_verified:
                with open(file, "rb", closefd=False) as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if digest != sha256:
                    upload.path.unlink()
                    raise CheckpointChanged(
                        f"the upload arrived with sha256 {digest}, and {sha256} was announced; the upload is deleted: "
                        "check that nothing writes to the file, and send the file again"
                    )
                os.fsync(file)
                os.utime(file, ns=(0, 0))
            return _upload_at(upload.path, os.fstat(file))

    def finished(self, owner: str | None, sha256: str) -> Sent | None:
        """Return an owner's verified upload of a file, or uploads of the folder whose manifest has the digest; None if
        the owner has none, or not all bytes of the file or the manifest."""
        try:
            if self.find(owner, sha256).remaining:
                return None
            upload = self.verify(owner, sha256)
        except UploadNotFound:
            return None
        content = upload.path.read_bytes() if upload.length <= MAX_BYTES else b""
        if not content.startswith(BEGIN):
            return Sent(upload)
        digests, key = read_manifest(content), _key_of(owner)
        uploads = (held for held in self._all() if held.owner == key and not (held.remaining or held.is_expired))
        whole = {held.sha256: held for held in uploads}
        for digest in {*digests.values()} & whole.keys():
            if not whole[digest].is_verified:
                whole[digest] = self.verify(owner, digest)
        files = {name: whole[digest] for name, digest in digests.items() if digest in whole}
        return Sent(upload, files, tuple(name for name in digests if name not in files))

    def delete(self, owner: str | None, sha256: str) -> None:
        self.drop(self.find(owner, sha256))

    def drop(self, upload: Upload) -> None:
        with self.locked(upload):
            upload.path.unlink()

    def sweep(self) -> int:
        """Remove expired uploads to which no request is writing; return their number."""
        removed = 0
        for upload in self._all():
            if upload.is_expired:
                with suppress(UploadNotFound, UploadConflict), self.locked(upload):
                    upload.path.unlink()
                    removed += 1
        return removed

    def require_space(self, size: int, kept_bytes: int, reserved: int = 0) -> None:
        """Raise StorageFull unless `size` and `reserved` more bytes fit into the space for uploads and on the disk."""
        used = sum(upload.offset for upload in self._all())
        if used + reserved + kept_bytes + size > self._limit:
            raise StorageFull(
                f"{size:,} bytes do not fit: EVALSVC_UPLOAD_BYTES is {self._limit:,}, uploads that are not posted yet "
                f"have {used:,} of these, your unfinished uploads still need {reserved:,}, and uploaded checkpoints "
                f"that are still needed have {kept_bytes:,}; resume the upload once evaluations have ended or uploads "
                "have expired, or have the operator raise EVALSVC_UPLOAD_BYTES"
            )
        free = max(0, shutil.disk_usage(self.folder).free - reserved - RESERVE_BYTES)
        if size > free:
            raise _disk_full(f"{size:,} bytes do not fit, and {free:,} are free for uploads")

    def _all(self) -> Iterator[Upload]:
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in list(os.scandir(self.folder)):
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):  # no links and other files
                    with suppress(FileNotFoundError):
                        yield _upload_at(Path(entry.path), entry.stat(follow_symlinks=False))


class Part:
    """A part of an upload, appended by one thread as it arrives. The upload is locked until `close`."""

    def __init__(
        self, uploads: Uploads, owner: str | None, sha256: str, offset: int, checksum: str | None, kept_bytes: int
    ) -> None:
        """Lock an upload. `checksum` of the part has the name of an algorithm, and the digest in base64."""
        self.offset = offset
        self._uploads = uploads
        self._kept_bytes = kept_bytes
        self._checksum = checksum
        self._hash = None if checksum is None else hashlib.new(checksum.partition(" ")[0], usedforsecurity=False)
        with ExitStack() as stack:
            self.upload, self._file = stack.enter_context(uploads.locked(uploads.find(owner, sha256)))
            if offset != self.upload.offset:
                raise UploadConflict(
                    f"the part starts at byte {offset:,}, and upload {sha256} has {self.upload.offset:,} bytes; send "
                    "the part that starts there"
                )
            self._open = stack.pop_all()

    def write(self, piece: bytes | bytearray) -> None:
        """Append bytes; raise StorageFull if the disk or the space for uploads is full. Earlier bytes are kept."""
        if not piece:
            return
        with _translated_os_errors(self._uploads.folder):
            end = self.offset + len(piece)
            with self._uploads.growing:
                self._uploads.require_space(len(piece), self._kept_bytes)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.pwrite(self._file, rest, end - len(rest)) :]
            if self._hash is not None:
                self._hash.update(piece)
            if self.offset // SYNC_BYTES < end // SYNC_BYTES:
                os.fdatasync(self._file)
            self.offset = end

    def finish(self) -> None:
        """Compare the checksum of the part, or else raise ChecksumMismatch; flush the part to the disk."""
        if self._hash is not None:
            algorithm, digest = self._hash.name, base64.b64encode(self._hash.digest()).decode()
            if self._checksum != f"{algorithm} {digest}":
                raise ChecksumMismatch(
                    f"the part from byte {self.upload.offset:,} of upload {self.upload.sha256} has another {algorithm} "
                    "than its Upload-Checksum says, and is not counted; send the part again"
                )
            self._hash = None
        with _translated_os_errors(self._uploads.folder):
            os.fdatasync(self._file)

    def close(self) -> None:
        """Release the lock. Remove the bytes of a part whose checksum is wrong or was not compared."""
        with self._open:
            if self._hash is not None:
                os.ftruncate(self._file, self.upload.offset)


def _key_of(owner: str | None) -> str:
    return hashlib.sha256(repr(owner).encode()).hexdigest()[:32]


def _upload_at(path: Path, status: os.stat_result) -> Upload:
    owner, sha256, length = path.name.split("-")
    expires_at = datetime.fromtimestamp(status.st_ctime + LIFETIME, UTC)
    return Upload(path, owner, sha256, int(length), status.st_size, status.st_mtime_ns == 0, expires_at)


@contextmanager
def _translated_os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(os_reason(error)) from None
        raise DataDirectoryUnusable(
            f"uploads cannot be stored in {folder}: {os_reason(error)}; change the permissions of the folder, or "
            "choose another data folder with --data-dir (EVALSVC_DATA_DIR)"
        ) from None


def _disk_full(reason: str) -> StorageFull:
    return StorageFull(
        f"the disk of the data folder is full ({reason}); make room there and resume the upload: the bytes that "
        "HEAD /v1/uploads/{sha256} counts are kept"
    )
