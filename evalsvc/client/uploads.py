"""Sending a file to the service in parts, by tus 1.0, so that a broken connection costs at most the part under way."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import httpx

from evalsvc.client.transport import Transport, query_of, segment
from evalsvc.errors import (
    ChecksumMismatch,
    DatabaseUnusable,
    InvalidRequest,
    NotReady,
    RateLimited,
    ServiceUnreachable,
    UploadConflict,
    UploadNotFound,
)
from evalsvc.files.uploads.local import LocalFile, Report
from evalsvc.spec import documents

T = TypeVar("T")

PART_BYTES = 8 << 20
"""Bytes of a part of an upload: the most that a broken connection costs."""

UPLOAD_PATIENCE = 600.0
"""Seconds without progress after which an upload is given up."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
"""Shortest and longest back-off between two attempts of a request, in seconds. Each delay is twice the delay before,
times a random factor between 0.5 and 1.5."""

DIGEST_SPEED = 50_000_000
"""Bytes per second that a slow service hashes when it compares the digest of a whole file."""

_TRANSIENT = (ServiceUnreachable, DatabaseUnusable, NotReady, RateLimited, UploadConflict)
"""Errors after which the same request is sent again."""

_RESUMABLE = (*_TRANSIENT, UploadNotFound, ChecksumMismatch)
"""Errors of a part after which the upload resumes from the offset that the service names."""

_TUS = {"Tus-Resumable": "1.0.0"}


class Uploader:
    """The uploads of a token."""

    def __init__(self, transport: Transport) -> None:
        """Send all requests by `transport`."""
        self._transport = transport

    def unposted(self, sha256: str | None = None) -> list[documents.Upload]:
        """Return the uploads that are not posted yet, or those of the file with a digest."""
        return self._transport.get(documents.Uploads, "/v1/uploads", query_of(sha256=sha256)).uploads

    def delete(self, upload: str) -> None:
        """Delete an upload with its bytes."""
        self._require_success(self._transport.request("DELETE", f"/v1/uploads/{segment(upload)}"))

    def require_possible(self, file: LocalFile) -> None:
        """Raise the error that an upload would end in, before a large file is read.

        Raises:
            Forbidden: the service takes no uploads.
            InvalidRequest: the file has more bytes than all uploads of the service may take.
        """
        response = self._transport.request("OPTIONS", "/v1/uploads")
        self._require_success(response)
        limit = response.headers.get("tus-max-size", "")
        if limit.isdigit() and file.size > int(limit):
            raise InvalidRequest(
                f"{file.path} has {file.size:,} bytes, and all uploads of the service together may take "
                f"{int(limit):,}; have the operator raise EVALSVC_UPLOAD_BYTES, or post a path that the service can "
                "read, without --upload"
            )

    def send(self, file: LocalFile, sha256: str, patience: float, report: Report | None) -> documents.Upload:
        """Send a file in parts, each from the offset that the service names, until the service has the whole file."""

        def find_or_begin() -> documents.Upload:
            return self._find_or_begin(file, sha256)

        upload = repeat_transient(find_or_begin, patience)
        progress_at, delay = time.monotonic(), FIRST_DELAY
        while not upload.complete:
            if report is not None:
                report("sending", upload.offset, file.size)
            try:
                upload = self._send_part(file, upload)
                progress_at, delay = time.monotonic(), FIRST_DELAY
            except _RESUMABLE:
                if time.monotonic() - progress_at > patience:
                    raise
                delay = _back_off(delay)
                upload = repeat_transient(find_or_begin, patience)
        file.require_unchanged()
        return upload

    def _find_or_begin(self, file: LocalFile, sha256: str) -> documents.Upload:
        for upload in self.unposted(sha256):
            if upload.length == file.size:
                return upload
        metadata = {"sha256": sha256, "filename": file.name}
        pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())
        headers = {"Upload-Length": str(file.size), "Upload-Metadata": ",".join(pairs)}
        response = self._transport.request("POST", "/v1/uploads", headers=_TUS | headers)
        return self._transport.parse(documents.Upload, self._transport.read(response), "POST", "/v1/uploads")

    def _send_part(self, file: LocalFile, upload: documents.Upload) -> documents.Upload:
        """Send the next part. When no bytes are left, an empty part makes the service compare the digest."""
        part = file.part(upload.offset, PART_BYTES)
        digest = base64.b64encode(hashlib.sha256(part).digest()).decode()
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(upload.offset),
            "Upload-Checksum": f"sha256 {digest}",
        }
        timeout = self._transport.timeout
        if upload.offset + len(part) == upload.length and timeout.read is not None:
            timeout = httpx.Timeout(**timeout.as_dict() | {"read": timeout.read + upload.length / DIGEST_SPEED})
        path = f"/v1/uploads/{segment(upload.id)}"
        response = self._transport.request("PATCH", path, headers=_TUS | headers, content=part, timeout=timeout)
        self._require_success(response)
        offset = response.headers.get("upload-offset", "")
        if not offset.isdigit():
            self._transport.refuse(response)
        return replace(upload, offset=int(offset), complete=int(offset) == upload.length)

    def _require_success(self, response: httpx.Response) -> None:
        """Raise the error of an answer that has no document."""
        if response.status_code == httpx.codes.REQUEST_TIMEOUT:
            raise ServiceUnreachable(f"the connection to {self._transport.shown_url} stalled while a part was sent")
        is_from_service = response.headers.get("content-type", "").startswith("application/problem+json")
        if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and not is_from_service:
            raise InvalidRequest(
                f"a proxy in front of {self._transport.shown_url} refuses requests of {PART_BYTES:,} bytes (413); have "
                "its limit raised, e.g. `client_max_body_size 16m` of nginx"
            )
        if not response.is_success:
            self._transport.read(response)


def repeat_transient(request: Callable[[], T], patience: float) -> T:
    """Return what `request` returns; repeat the request while the error is transient, for `patience` seconds."""
    begun, delay = time.monotonic(), FIRST_DELAY
    while True:
        try:
            return request()
        except _TRANSIENT:
            if time.monotonic() - begun > patience:
                raise
        delay = _back_off(delay)


def _back_off(delay: float) -> float:
    """Sleep for about `delay` seconds, and return the next delay.

    Clients that lose a service at the same moment must not all return at the same moment, so the delay is random.
    """
    time.sleep(delay * (0.5 + random.random()))
    return min(2 * delay, LONGEST_DELAY)
