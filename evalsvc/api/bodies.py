"""How large the body of a request may be, and how long it may take to come."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1_000_000

MAX_IMPORT = 16_000_000
"""100,000 imported values with steps, errors and n are 5 MB."""

LARGE_BODIES: Mapping[tuple[str, str], int] = {("POST", "/v1/runs/{run}/metrics"): MAX_IMPORT}
"""Method and path of routes that take more bytes."""

SECONDS = 30.0
"""In which a body must be there, and one more for each `SLOWEST` bytes of it."""

SLOWEST = 20_000


class BodyLimit:
    """Refuse a body that is too large, however it is sent, having read no more of it than it may have; or too slow."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _limited(receive, Headers(scope=scope), max_body(scope["method"], scope["path"]))
        await self.app(scope, receive, send)


def max_body(method: str, path: str) -> int:
    """Bytes that the body of a request may have."""
    for (of, pattern), limit in _PATTERNS.items():
        if of == method and pattern.match(path):
            return limit
    return MAX_BODY


_PATTERNS: dict[tuple[str, Any], int] = {
    (method, compile_path(path)[0]): limit for (method, path), limit in LARGE_BODIES.items()
}


def _limited(receive: Receive, headers: Headers, limit: int) -> Receive:
    announced = headers.get("content-length", "")
    read, begun, complete = 0, time.monotonic(), False

    async def receive_limited() -> Message:
        nonlocal read, complete
        if complete:
            # What comes after the body is that the client went away, for which a stream waits as long as it takes.
            return await receive()
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        with anyio.move_on_after(begun + SECONDS + read / SLOWEST - time.monotonic()) as waiting:
            message = await receive()
        if waiting.cancelled_caught:
            raise HTTPException(408, f"the body did not come within {SECONDS:g} s; send it faster, or less of it")
        read += len(message.get("body", b""))
        if read > limit:
            raise _too_large(limit)
        complete = not message.get("more_body", False)
        return message

    return receive_limited


def _too_large(limit: int) -> HTTPException:
    smaller = (
        "send it in parts, which may come in any order" if limit == MAX_IMPORT else "name a large file by its path"
    )
    return HTTPException(413, f"the body is larger than {limit:,} bytes; {smaller}")
