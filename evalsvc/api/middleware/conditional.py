"""Conditional requests: an ETag that is known before the content is read, and 304 if the content has not changed.

The service also caches the newest answers: clients that watch a run ask the same question, and Python renders one
answer at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

KEPT_BYTES = 32 << 20
"""Bytes of all cached answers together. Beyond the limit, the least recently used answers are dropped."""


class Answers:
    """A cache of recent answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], bytes] = {}
        self._bytes = 0

    def get(self, run: str, tag: str, make: Callable[[], bytes]) -> bytes:
        """Return the cached answer about a run with a tag, or make and cache the answer."""
        key = (run, tag)
        with self._lock:
            if (body := self._kept.pop(key, None)) is not None:
                self._kept[key] = body  # put at the end, so the dictionary is in the order of use
                return body
        body = make()
        self._keep(key, body)
        return body

    def _keep(self, key: tuple[str, str], body: bytes) -> None:
        with self._lock:
            self._bytes += len(body) - len(self._kept.pop(key, b""))
            self._kept[key] = body
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._kept.pop(next(iter(self._kept))))


def caching_headers(tag: str) -> dict[str, str]:
    """Return the headers of an answer, or of the 304 in its place; a cache must revalidate before reuse."""
    # Weak: an answer that was compressed on the way has other bytes and the same content.
    return {"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache"}


def not_modified(request: Request, tag: str) -> Response | None:
    """Return a 304 for a client that has the newest content (RFC 9110, 13.1.2); None for any other client."""
    known = request.headers.get("if-none-match", "")
    tags = {part.strip().removeprefix("W/").strip('"') for part in known.split(",")}
    if known.strip() != "*" and tag not in tags:
        return None
    return Response(status_code=304, headers=caching_headers(tag) | {"Vary": "Accept-Encoding"})
