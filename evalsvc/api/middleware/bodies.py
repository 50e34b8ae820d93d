"""Limits of a request's body: its size, the time it takes, and the depth of its JSON."""

from __future__ import annotations

import json
import re
import time

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1_000_000

MAX_IMPORT = 16_000_000
"""Bytes of an import; 100,000 values with steps, errors and n are 5 MB."""

IMPORTS = compile_path("/v1/runs/{run}/metrics")[0]
"""The path of the route whose POST takes a body of MAX_IMPORT bytes."""

UPLOADS = compile_path("/v1/uploads/{upload_id}")[0]
"""Path of the route that takes parts of uploads, by PATCH. A part has no limit but the length of its upload: the route
writes the part to the disk as it comes."""

SECONDS = 30.0
"""Seconds in which a body must be complete, plus one second for each `SLOWEST` bytes.

Between two pieces of an upload's part, the same time may pass.
"""

SLOWEST = 20_000

MAX_DEPTH = 64
"""The most levels of lists and objects in the JSON of a body."""

MAX_DIGITS = 4300
"""The most digits of a whole number, which is Python's own limit: reading time grows with their square."""


class BodyLimit:
    """Refuse a body that is too large or too slow, having read no more than the limit."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _limited(receive, Headers(scope=scope), max_body(scope["method"], scope["path"]))
        await self.app(scope, receive, send)


def max_body(method: str, path: str) -> int | None:
    """Return the most bytes that the body of a request may have; None where the route has a limit of its own."""
    if method == "PATCH" and UPLOADS.match(path):
        return None
    return MAX_IMPORT if method == "POST" and IMPORTS.match(path) else MAX_BODY


def _limited(receive: Receive, headers: Headers, limit: int | None) -> Receive:
    announced = headers.get("content-length", "")
    read, begun, complete = 0, time.monotonic(), False

    async def receive_limited() -> Message:
        nonlocal read, complete
        if complete:
            # What comes after the body is that the client went away, for which a stream waits as long as it takes.
            return await receive()
        if limit is not None and announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        patience = begun + SECONDS + read / SLOWEST - time.monotonic()
        # What an upload has sent fast buys no time to send nothing.
        with anyio.move_on_after(patience if limit is not None else min(patience, SECONDS)) as waiting:
            message = await receive()
        if waiting.cancelled_caught:
            raise HTTPException(408, f"the body did not come within {SECONDS:g} s; send it faster, or less of it")
        read += len(message.get("body", b""))
        if limit is not None and read > limit:
            raise _too_large(limit)
        complete = not message.get("more_body", False)
        return message

    return receive_limited


def _too_large(limit: int) -> HTTPException:
    smaller = (
        "send it in parts, which may come in any order" if limit == MAX_IMPORT else "name a large file by its path"
    )
    return HTTPException(413, f"the body is larger than {limit:,} bytes; {smaller}")


class JsonRequest(Request):
    """A request with bounded JSON, whose refusal says what is wrong and where."""

    async def json(self) -> object:
        return parse_json(await self.body())


def parse_json(body: bytes) -> object:
    """Return the content of a JSON body.

    Raises:
        JSONDecodeError: the body is no JSON.
        HTTPException: the body is not UTF-8, nested too deeply, or has a number of too many digits.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(
            f"is not UTF-8: byte 0x{body[error.start]:02x} at place {error.start}; send the text as UTF-8"
        ) from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):  # more digits than Python makes a number of, or deeper than it goes
        raise _unreadable(_excess(text)) from None
    if _is_deep(content):
        raise _unreadable(_excess(text))
    return content


def _unreadable(what: str) -> HTTPException:
    return HTTPException(422, f"the body {what}")


def _is_deep(content: object) -> bool:
    """Tell whether content is nested too deeply. Levels are walked one by one, since a recursion would be as deep."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for item in level
            if isinstance(item, (list, dict))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def _excess(text: str) -> str:
    """Return where a text exceeds a limit, as a message."""
    depth = 0
    for token in _TOKENS.finditer(text):
        mark = token[0][0]
        if mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return f"is nested more than {MAX_DEPTH} levels deep at character {token.start()}; send it flatter"
        elif mark in "]}":
            depth -= 1
        elif len(token[0]) > MAX_DIGITS and mark != '"':
            return (
                f"has a number of {len(token[0]):,} characters at character {token.start()}; give at most "
                f"{MAX_DIGITS:,} digits"
            )
    return f"cannot be read; send JSON of at most {MAX_DEPTH} levels and numbers of at most {MAX_DIGITS:,} digits"


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|-?[0-9][0-9.eE+-]*', re.DOTALL)
