"""Answers: JSON, streamed CSV, cached and conditional answers, and HEAD."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import anyio
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.api.middleware.threads import Threads
from evalsvc.files.csv_cells import csv_text
from evalsvc.spec.protocol import number_to_json, plain_json

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is what `If-None-Match` says that you have: the `ETag` of an earlier answer."}
}

LINES = 1000

KEPT_BYTES = 32 << 20
"""The most bytes of all cached answers together. Beyond the limit, the least recently used answers are dropped."""

ENTRY_BYTES = 400
"""Bytes that an entry of the cache counts besides its answer, so that many small answers stay within the limit too."""

T = TypeVar("T")


class JsonAnswer(JSONResponse):
    """A document as JSON. A NaN or an infinity becomes a string, never an error."""

    def render(self, content: object) -> bytes:
        return content if isinstance(content, bytes) else rendered(content)


def rendered(content: object) -> bytes:
    """Return content as the bytes of JSON. `JsonAnswer` takes such bytes unchanged, so a caller can cache the bytes."""
    # Eight times as fast as the standard library for numbers, which make up a history.
    return to_json(content, inf_nan_mode="strings")


def answer(kind: Any, description: str, **more: Any) -> dict[str, Any]:
    """Return the description of a response with a document of a type, or of one of the types in a union."""
    return {"model": kind, "description": description, **more}


def or_text(media_type: str, example: str, schema_type: str = "string") -> dict[str, Any]:
    """Return the part of a response's description for a further media type, such as `text/csv`, on request."""
    return {"content": {media_type: {"schema": {"type": schema_type}, "example": example}}}


def csv_response(columns: Sequence[str], rows: Iterable[Sequence[object]], threads: Threads) -> StreamingResponse:
    """Return a CSV answer with a header and a line for each row, which `pandas.read_csv` reads from a URL. `rows` is
    read while the answer is sent, so check the request before you call this function."""

    def pieces() -> Iterator[str]:
        yield csv_text([columns])
        rest = iter(rows)
        while piece := [[_cell(value) for value in row] for row in islice(rest, LINES)]:
            yield csv_text(piece)

    return StreamingResponse(threads.stream(pieces()), media_type="text/csv")


def _cell(value: object) -> object:
    if isinstance(value, float):
        return number_to_json(value)
    if isinstance(value, (list, dict)):
        return json.dumps(plain_json(value), ensure_ascii=False)
    return value


class Answers(Generic[T]):
    """A cache of recent answers, because clients that watch a run send the same request. `weigh` returns about how many
    bytes an answer takes."""

    def __init__(self, weigh: Callable[[Any], int] = len) -> None:
        self._weigh = weigh
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[T, int]] = {}
        self._bytes = 0

    def get(self, run: str, tag: str, make: Callable[[], T]) -> T:
        """Return the cached answer for a run and a tag. Without one, call `make` and cache the result."""
        if (answer := self.kept(run, tag)) is None:
            answer = make()
            weight = self._weigh(answer) + ENTRY_BYTES
            with self._lock:
                if (older := self._kept.pop((run, tag), None)) is not None:
                    self._bytes -= older[1]
                self._kept[run, tag] = answer, weight
                self._bytes += weight
                while self._bytes > KEPT_BYTES:
                    self._bytes -= self._kept.pop(next(iter(self._kept)))[1]
        return answer

    def kept(self, run: str, tag: str) -> T | None:
        with self._lock:
            if (entry := self._kept.pop((run, tag), None)) is None:
                return None
            self._kept[run, tag] = entry  # put at the end, so the dictionary is in the order of use
            return entry[0]


def caching_headers(tag: str) -> dict[str, str]:
    """Return the headers of an answer or a 304 that make caches revalidate before reuse."""
    # A weak tag, since a compressed answer has other bytes and the same content.
    return {"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache"}


def not_modified(request: Request, tag: str, headers: Mapping[str, str] = {}) -> Response | None:
    """Return a 304 with headers if the client has the content with this tag (RFC 9110, section 13.1.2)."""
    known = request.headers.get("if-none-match", "")
    tags = {part.strip().removeprefix("W/").strip('"') for part in known.split(",")}
    if known.strip() != "*" and tag not in tags:
        return None
    return Response(status_code=304, headers={**caching_headers(tag), "Vary": "Accept-Encoding", **headers})


def conditional(request: Request, answers: Answers[bytes], run: str, tag: str, make: Callable[[], object]) -> Response:
    """Answer with 304, with the cached JSON for a run and a tag, or with the JSON of the document that `make` reads."""
    return not_modified(request, tag) or JsonAnswer(
        answers.get(run, tag, lambda: rendered(make())), headers=caching_headers(tag)
    )


def tagged(request: Request, content: object) -> Response:
    """Answer with a document as JSON, tagged by its content, or with 304."""
    body = content if isinstance(content, bytes) else rendered(content)
    tag = hashlib.sha256(body).hexdigest()[:32]
    return not_modified(request, tag) or JsonAnswer(body, headers=caching_headers(tag))


class HeadAsGet:
    """Answer HEAD with the status and the headers of GET, and without a body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        with anyio.CancelScope() as rest:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    # Otherwise an event stream would go on for minutes, and a table would be read to its end.
                    rest.cancel()

            # A copy of the scope: the server reads the method from its scope to know that no body follows.
            await self.app({**scope, "method": "GET"}, receive, send_head)
