"""Answers that may be kept: an ETag that is known before anything is read, and 304 where it has not changed.

The service keeps the newest ones too: clients that watch a run ask the same, and Python makes one answer at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

KEPT_BYTES = 32 << 20
"""Size of all answers that are kept; beyond it, the least recently used are dropped."""


class Answers:
    """What was answered lately, by what it was an answer to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], bytes] = {}
        self._bytes = 0

    def get(self, run: str, tag: str, make: Callable[[], bytes]) -> bytes:
        """The answer with this tag about a run of this name, made where it is not kept."""
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
    """Of an answer and of the 304 in its place. Whoever keeps it must ask before it is used again."""
    # Weak: an answer that was compressed on the way has other bytes and the same content.
    return {"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache"}


def not_modified(request: Request, tag: str) -> Response | None:
    """The answer to a client that has the newest one already (RFC 9110, 13.1.2); None: it has another one, or none."""
    known = request.headers.get("if-none-match", "")
    tags = {part.strip().removeprefix("W/").strip('"') for part in known.split(",")}
    if known.strip() != "*" and tag not in tags:
        return None
    return Response(status_code=304, headers=caching_headers(tag) | {"Vary": "Accept-Encoding"})
