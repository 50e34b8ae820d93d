"""Conditional requests: an ETag that needs no read of the content, and 304 if the content has not changed.

The service also caches recent answers, because clients that watch a run send the same request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

KEPT_BYTES = 32 << 20
"""The most bytes of all cached answers together. Beyond the limit, the least recently used answers are dropped."""

ENTRY_BYTES = 400
"""Bytes that an entry of the cache counts besides its answer, so that many small answers stay within the limit too."""


T = TypeVar("T")


class Answers(Generic[T]):
    """A cache of recent answers. `weigh` returns about how many bytes an answer takes."""

    def __init__(self, weigh: Callable[[Any], int] = len) -> None:
        self._weigh = weigh
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[T, int]] = {}
        self._bytes = 0

    def get(self, run: str, tag: str, make: Callable[[], T]) -> T:
        """Return the cached answer for a run and a tag. Without one, call `make` and cache the result."""
        if (answer := self.kept(run, tag)) is None:
            answer = make()
            self._keep((run, tag), answer)
        return answer

    def kept(self, run: str, tag: str) -> T | None:
        """Return the cached answer about a run with a tag; None if there is none."""
        with self._lock:
            if (entry := self._kept.pop((run, tag), None)) is None:
                return None
            self._kept[run, tag] = entry  # put at the end, so the dictionary is in the order of use
            return entry[0]

    def _keep(self, key: tuple[str, str], answer: T) -> None:
        weight = self._weigh(answer) + ENTRY_BYTES
        with self._lock:
            if (older := self._kept.pop(key, None)) is not None:
                self._bytes -= older[1]
            self._kept[key] = answer, weight
            self._bytes += weight
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._kept.pop(next(iter(self._kept)))[1]


def caching_headers(tag: str) -> dict[str, str]:
    """Return the headers of an answer or a 304 that make caches revalidate before reuse."""
    # A weak tag, since a compressed answer has other bytes and the same content.
    return {"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache"}


def not_modified(request: Request, tag: str) -> Response | None:
    """Return a 304 if the client has the content with this tag (RFC 9110, section 13.1.2); otherwise None."""
    known = request.headers.get("if-none-match", "")
    tags = {part.strip().removeprefix("W/").strip('"') for part in known.split(",")}
    if known.strip() != "*" and tag not in tags:
        return None
    return Response(status_code=304, headers=caching_headers(tag) | {"Vary": "Accept-Encoding"})
