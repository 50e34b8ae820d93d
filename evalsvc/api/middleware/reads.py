"""Reads: HEAD as GET, and a limit on concurrent reads, so that the event loop has time for other requests."""

from __future__ import annotations

import asyncio
import re

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.api.middleware.threads import READS

AT_ONCE = re.compile(r"/healthz|/readyz|/v1/table|/vega/.*|/panels/.*\.(svg|png)", re.DOTALL)
"""Paths without the limit: probes, and the table and charts as pictures, which have limits of their own."""


class Admission:
    """Start at most as many reads as there are threads, in the order of arrival. Start other requests immediately.

    Without the limit, each of two hundred concurrent clients would take a step in every turn of the event loop, and a
    probe would wait for all clients at each of its steps. A read frees its place when its answer begins, so slow
    clients and event streams hold no place. A read with a body takes no place, since its body may never arrive.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._places = asyncio.Semaphore(READS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_read(scope):
            await self.app(scope, receive, send)
            return
        await self._places.acquire()
        has_place = True

        def leave() -> None:
            nonlocal has_place
            if has_place:
                has_place = False
                self._places.release()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                leave()
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            leave()


def _is_read(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or AT_ONCE.fullmatch(scope["path"]):
        return False
    headers = Headers(scope=scope)
    return "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"


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
