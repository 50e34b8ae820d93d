"""How many reads are worked on at a time, so that one loop of events has time for the rest."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.api.middleware.threads import READS

AT_ONCE = ("/healthz", "/readyz", "/v1/table")
"""Probes; and the table, whose pieces take turns of their own: its answer begins when every other table had a turn."""


class Admission:
    """Begin as many reads as have threads, in the order in which they came, and everything else at once.

    Two hundred clients that ask in the same second would otherwise each take a step in every turn of the event loop,
    and a probe would wait for all of them at each of its own steps. A read leaves its place when its answer begins, so
    that clients that read slowly, and streams of events, hold none; a read that has a body takes none, since the body
    may never come.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._places = asyncio.Semaphore(READS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_read(scope):
            await self.app(scope, receive, send)
            return
        await self._places.acquire()
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
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
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or scope["path"] in AT_ONCE:
        return False
    headers = Headers(scope=scope)
    return "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
