"""Limits of the bodies that a `stranger` sends: size, time of arrival, depth and number of values of JSON."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from typing import TypeVar

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.api.middleware.access import MAX_BODY, NEEDS, caller_key

T = TypeVar("T")

MAX_IMPORT = 16_000_000
"""The most bytes of an import. An import of 100,000 values with steps, standard errors and n has 5 MB."""

HELD = 32_000_000
"""The most bytes of bodies that the service holds at the same time for a caller."""

SECONDS = 30.0
"""Seconds in which a body must be complete, plus one second for each `SLOWEST` bytes. Also the most seconds between two
pieces of an upload's part."""

SLOWEST = 20_000
"""The lowest accepted speed of a body, in bytes per second."""

MAX_VALUES, MAX_IMPORT_VALUES = 100_000, 500_000
"""The most values in a JSON body, and in an import. An empty list of three bytes takes 70 bytes of memory."""

INLINE = 16_000
"""The most bytes of a JSON body that is parsed on the event loop. A larger body is parsed in a thread."""

MAX_DEPTH, MAX_DIGITS = 64, 4300
"""The most nested levels of a JSON body, and digits of a number. Python has the same limit of digits, since the parsing
time grows with the square."""


class BodyLimit:
    """Refuse bodies that are too large or too slow, without reading more than the limit. The bodies of a caller's
    unanswered requests have a limit together, except for parts of uploads, which are not held."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = MAX_BODY if (needed := scope.get(NEEDS)) is None else needed.body
        receive = _limited(receive, Headers(scope=scope), limit)
        if limit is None:
            await self.app(scope, receive, send)
            return
        caller, held = caller_key(scope), 0

        async def receive_held() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            if size and self._held[caller] + size > HELD:
                raise HTTPException(
                    429,
                    f"the bodies of your unanswered requests have more than {HELD:,} bytes together; send fewer large "
                    "bodies at the same time",
                    {"Retry-After": "1"},
                )
            held += size
            self._held[caller] += size
            return message

        try:
            await self.app(scope, receive_held, send)
        finally:
            self._held[caller] -= held
            if not self._held[caller]:
                del self._held[caller]


def _limited(receive: Receive, headers: Headers, limit: int | None) -> Receive:
    announced = headers.get("content-length", "")
    read, begun, complete = 0, time.monotonic(), False

    async def receive_limited() -> Message:
        nonlocal read, complete
        if complete:
            # After the body, an event stream waits without a limit for the message that the client disconnected.
            return await receive()
        if limit is not None and announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        patience = begun + SECONDS + read / SLOWEST - time.monotonic()
        # Fast pieces of an upload do not extend the time for the next piece.
        with anyio.move_on_after(patience if limit is not None else min(patience, SECONDS)) as waiting:
            message = await receive()
        if waiting.cancelled_caught:
            raise HTTPException(
                408, f"the body did not arrive within {SECONDS:g} s; send the body faster, or send a smaller body"
            )
        read += len(message.get("body", b""))
        if limit is not None and read > limit:
            raise _too_large(limit)
        complete = not message.get("more_body", False)
        return message

    return receive_limited


def _too_large(limit: int) -> HTTPException:
    smaller = "split the import into several requests" if limit == MAX_IMPORT else "name a large file by its path"
    return HTTPException(413, f"the body is larger than {limit:,} bytes; {smaller}")


class JsonRequest(Request):
    """A request that refuses JSON beyond the limits, with an error that names the position."""

    async def json(self) -> object:
        body = await self.body()
        if len(body) <= INLINE:
            return _parse_storable(body)
        return await self.app.state.state.threads.run("parse", _parse_storable, body)


def _parse_storable(body: bytes) -> object:
    content = parse_json(body)
    try:
        check_storable(content)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return content


def parse_json(body: bytes, most: int = MAX_VALUES) -> object:
    """Return the content of a JSON body with at most `most` values, which are counted before the body is parsed."""
    # A value is the first in its list or object, or follows a comma. Commas and brackets in texts count too, which
    # needs no search for texts.
    containers = len(body) - len(body.translate(None, b"[{"))
    if body.count(b",") + containers >= most:
        raise HTTPException(
            422, f"the body has more than {most:,} values (commas and opening brackets); send fewer at a time"
        )
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = f"byte 0x{body[error.start]:02x} at position {error.start}"
        raise HTTPException(422, f"the body is not UTF-8: {position}; send the text as UTF-8") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):  # too many digits, or nested too deeply for Python
        raise HTTPException(422, _excess(text)) from None
    if containers > MAX_DEPTH and _is_deep(content):
        raise HTTPException(422, _excess(text))
    return content


def check_storable(data: T) -> T:
    """Raise ValueError for JSON that a database cannot store: NaN, infinities, NUL, unpaired surrogates."""
    rest: list[object] = [data]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            rest.extend(item)
            rest.extend(item.values())
        elif isinstance(item, list):
            rest.extend(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"the number {item} is not allowed; send a finite number, or leave the field out")
        elif isinstance(item, str) and _NOT_STORABLE.search(item):
            raise ValueError(f"the text {item[:80]!r} has a NUL or an unpaired surrogate; leave the character out")
    return data


_NOT_STORABLE = re.compile(r"[\x00\ud800-\udfff]")


def _is_deep(content: object) -> bool:
    """Tell whether content is nested too deeply, without recursion."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        parts = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (list, dict))]
        level = [inner for part in parts for inner in part]
    return bool(level)


def _excess(text: str) -> str:
    depth = 0
    for token in _TOKENS.finditer(text):
        mark = token[0][0]
        if mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return (
                    f"the body is nested more than {MAX_DEPTH} levels deep at character {token.start()}; nest it less"
                )
        elif mark in "]}":
            depth -= 1
        elif len(token[0]) > MAX_DIGITS and mark != '"':
            return (
                f"the body has a number of {len(token[0]):,} characters at character {token.start()}; send numbers of "
                f"at most {MAX_DIGITS:,} digits"
            )
    return (
        f"the body cannot be read; send JSON of at most {MAX_DEPTH} levels and numbers of at most {MAX_DIGITS:,} digits"
    )


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|-?[0-9][0-9.eE+-]*', re.DOTALL)
