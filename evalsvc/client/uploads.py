"""Sending a file to the service in parts, by tus 1.0, so that a broken connection costs at most the part under way."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import httpx2

from evalsvc.client.transport import Transport
from evalsvc.errors import (
    CheckpointChanged,
    ChecksumMismatch,
    DatabaseUnusable,
    InvalidRequest,
    NotReady,
    RateLimited,
    ServiceUnreachable,
    UploadConflict,
    UploadNotFound,
    os_reason,
)
from evalsvc.files.manifest import files_to_send, write_manifest

PART_BYTES, SMALLEST_PART = 8 << 20, 64 << 10
"""Largest and smallest number of bytes of a part. A part that breaks off halves the next parts, and a part that arrives
doubles them, so an upload makes progress over a connection that breaks often."""

UPLOAD_PATIENCE = 600.0
"""Seconds without progress after which an upload is given up."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
"""Shortest and longest back-off between two attempts of a request, in seconds. Each delay is twice the delay before,
times a random factor between 0.5 and 1.5, so that clients that lose a service together do not return together."""

DIGEST_SPEED = 50_000_000
"""Bytes per second that a slow service hashes when it compares the digest of a whole file."""

TRANSIENT = (ServiceUnreachable, DatabaseUnusable, NotReady, RateLimited, UploadConflict)
"""Errors after which the same request is sent again."""

Report = Callable[[str, int, int], None]
"""Function that is called with the activity (`reading` or `sending`), the bytes done and the size of the file or
folder."""

_TUS = {"Tus-Resumable": "1.0.0"}


class Patience:
    """The time until repeated requests are given up, and the back-off between them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Begin again, since there was progress."""
        self._until, self._delay = time.monotonic() + self._seconds, FIRST_DELAY

    def wait(self, error: Exception) -> None:
        """Sleep before the next attempt; raise `error` if the time is over."""
        if time.monotonic() > self._until:
            raise error
        time.sleep(self._delay * (0.5 + random.random()))
        self._delay = min(2 * self._delay, LONGEST_DELAY)


class Upload:
    """A file of this machine on its way to the service."""

    def __init__(self, transport: Transport, path: Path, file: IO[bytes], status: os.stat_result | None = None) -> None:
        """`status` is that of the file when it was found: a file that has changed since is refused."""
        self._transport, self._path, self._file = transport, path, file
        self._status = status or os.fstat(file.fileno())
        self.size = self._status.st_size
        self._require_unchanged()

    def announce(self, sha256: str | None, patience: float, report: Report | None) -> str:
        """Return the given SHA-256 of the file, or else read the file."""
        return (sha256 or self.sha256(report)).lower()

    def sha256(self, report: Report | None) -> str:
        digest = hashlib.sha256()
        while block := self._file.read(PART_BYTES):
            digest.update(block)
            if report is not None:
                report("reading", self._file.tell(), self.size)
        self._require_unchanged()
        return digest.hexdigest()

    def send(self, sha256: str, patience: float, report: Report | None) -> None:
        """Send the file in parts, each from the offset that the service names, until the service has verified it."""
        waiting, part_bytes = Patience(patience), PART_BYTES
        offset: int | None = None
        while True:
            try:
                if offset is None:
                    encoded = base64.b64encode(sha256.encode()).decode()
                    headers = {"Upload-Length": str(self.size), "Upload-Metadata": f"sha256 {encoded}"}
                    offset = self._offset(self._transport.request("POST", "/v1/uploads", headers=_TUS | headers))
                if report is not None:
                    report("sending", offset, self.size)
                # When no bytes are left, an empty part makes the service compare the digest.
                offset = self._send_part(sha256, offset, part_bytes)
            except (*TRANSIENT, UploadNotFound, ChecksumMismatch) as error:
                waiting.wait(error)
                offset, part_bytes = None, max(part_bytes // 2, SMALLEST_PART)
                continue
            if offset == self.size:
                break
            waiting.renew()
            part_bytes = min(2 * part_bytes, PART_BYTES)
        self._require_unchanged()

    def _send_part(self, sha256: str, offset: int, part_bytes: int) -> int:
        self._file.seek(offset)
        size = min(part_bytes, self.size - offset)
        part = self._file.read(size)
        if len(part) < size:
            self._require_unchanged()
        digest = base64.b64encode(hashlib.sha256(part).digest()).decode()
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha256 {digest}",
        }
        timeout = self._transport.timeout
        if offset + len(part) >= self.size and timeout.read is not None:
            timeout = httpx2.Timeout(**timeout.as_dict() | {"read": timeout.read + self.size / DIGEST_SPEED})
        path = f"/v1/uploads/{sha256}"
        return self._offset(
            self._transport.request("PATCH", path, headers=_TUS | headers, content=part, timeout=timeout)
        )

    def _offset(self, response: httpx2.Response) -> int:
        if response.status_code == httpx2.codes.REQUEST_TIMEOUT:
            raise ServiceUnreachable(f"the connection to {self._transport.shown_url} stalled while a part was sent")
        is_from_service = response.headers.get("content-type", "").startswith("application/problem+json")
        if response.status_code == httpx2.codes.CONTENT_TOO_LARGE and not is_from_service:
            raise InvalidRequest(
                f"a proxy in front of {self._transport.shown_url} refuses requests of {PART_BYTES:,} bytes (413); have "
                "its limit raised, e.g. `client_max_body_size 16m` of nginx"
            )
        if not response.is_success:
            self._transport.read(response)
        offset = response.headers.get("upload-offset", "")
        if not offset.isdigit():
            self._transport.refuse(response)
        return int(offset)

    def _require_unchanged(self) -> None:
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self._status.st_mtime_ns):
            raise changed(self._path)


class FolderUpload:
    """A folder of this machine on its way to the service, which gets the files, and a manifest with their names."""

    def __init__(self, transport: Transport, path: Path) -> None:
        self._transport, self._path, self._files = transport, path, files_to_send(path)
        self._digests: dict[str, str] = {}
        self.size = sum(status.st_size for status in self._files.values())

    def announce(self, sha256: str | None, patience: float, report: Report | None) -> str:
        """Read all files; return the SHA-256 of the manifest once the service has the manifest and the files of the
        model's configuration, and so can check a post."""
        for done, file, name in self._opened():
            self._digests[name] = file.sha256(_shifted(report, done, self.size))
        for _, file, name in self._opened():
            if "/" not in name and name.endswith((".json", "params.txt")):
                file.send(self._digests[name], patience, None)
        return self._send_manifest(patience)

    def send(self, sha256: str, patience: float, report: Report | None) -> None:
        """Send the files that the service does not have, equal ones once, and the manifest."""
        sent: set[str] = set()
        for done, file, name in self._opened():
            if (digest := self._digests[name]) not in sent:
                file.send(digest, patience, _shifted(report, done, self.size))
            sent.add(digest)
        self._send_manifest(patience)

    def _send_manifest(self, patience: float) -> str:
        with TemporaryFile() as stream:
            stream.write(manifest := write_manifest(self._digests))
            stream.flush()
            sha256 = hashlib.sha256(manifest).hexdigest()
            Upload(self._transport, self._path, stream).send(sha256, patience, None)
        return sha256

    def _opened(self) -> Iterator[tuple[int, Upload, str]]:
        done = 0
        for name, status in self._files.items():
            try:
                stream = (self._path / name).open("rb")
            except OSError:
                raise changed(self._path / name) from None
            with stream:
                yield done, Upload(self._transport, self._path / name, stream, status), name
            done += status.st_size


def _shifted(report: Report | None, before: int, size: int) -> Report | None:
    return None if report is None else lambda activity, done, _: report(activity, before + done, size)


def changed(path: Path) -> CheckpointChanged:
    return CheckpointChanged(f"{path} was written to while it was sent; submit it once it is complete, or a copy of it")


@contextmanager
def opened_upload(transport: Transport, path: str) -> Iterator[Upload | FolderUpload]:
    """Open a file or folder to upload. What cannot be uploaded is refused before it is read."""
    real = Path(path).expanduser()
    with ExitStack() as stack:
        try:
            mode = real.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise InvalidRequest(f"{real} is no file on a disk; give the file with the weights")
            upload: Upload | FolderUpload
            if stat.S_ISDIR(mode):
                upload = FolderUpload(transport, real)
            else:
                upload = Upload(transport, real, stack.enter_context(real.open("rb")))
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"{real} cannot be read: {os_reason(error)}; give the path of a file of this machine"
            ) from None
        if not upload.size:
            raise InvalidRequest(
                f"{real} is empty (states of a training job do not count); submit it once the weights are written"
            )
        response = transport.request("OPTIONS", "/v1/uploads")
        if not response.is_success:
            transport.read(response)
        limit = response.headers.get("tus-max-size", "")
        if limit.isdigit() and upload.size > int(limit):
            raise InvalidRequest(
                f"{real} has {upload.size:,} bytes, and all uploads of the service together may take {int(limit):,}; "
                "have the operator raise EVALSVC_UPLOAD_BYTES, or post a path that the service can read, without "
                "--upload"
            )
        yield upload
