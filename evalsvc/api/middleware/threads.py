"""The threads of requests, with a limit for each kind of work, so that no `reader` delays other work.

Python runs one thread at a time. More threads do not finish more work, and delay other threads and the event loop, so
the limits are small.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from math import inf
from typing import Literal, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, Lock, to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.errors import RateLimited

Kind = Literal["read", "write", "stream", "upload", "digest", "page", "picture", "render", "parse", "import", "probe"]

THREADS: Mapping[Kind, int] = {
    "read": 4,
    "write": 8,  # one writes to the database, while others read files or a remote store
    "stream": 1,  # pieces of tables, for all clients together
    "upload": 4,  # pieces of uploads that are written to the disk
    "digest": 2,  # takes seconds for a large file
    "page": 3,  # takes longer than a read, which waits for none
    "picture": 1,  # the values of charts, so that pages and other reads have threads
    "render": 2,  # each in a process that takes 120 MB and seconds of a core
    "parse": 1,  # large JSON bodies, whose parser does not yield to other threads
    "import": 1,  # an import of 250,000 values takes 300 MB of memory
    "probe": 2,
}
"""The most threads that work at the same time, by kind of work."""

WAITING: Mapping[Kind, int] = {"picture": 32, "render": 16}
"""The most requests that wait for a thread, by kind of work. Further requests are refused."""

BUSY_SECONDS = 10
"""The seconds after which a client may ask again that was refused because too many requests wait."""

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """The limits of an application. Requests beyond a limit wait in the order of arrival."""

    def __init__(self) -> None:
        self._limits = {kind: CapacityLimiter(number) for kind, number in THREADS.items()}
        self._asked: Counter[Kind] = Counter()
        """The requests that wait for a thread or have one."""
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    def turn(self, caller: str) -> Lock:
        """Return the lock of a caller, for work that one request of a caller at a time may do."""
        return self._turns.setdefault(caller, Lock())

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """Yield the pieces of an answer. No thread is occupied between two pieces, while the client reads."""
        while (piece := await self.run("stream", lambda: next(pieces, None))) is not None:
            yield piece

    async def run(self, kind: Kind, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._asked[kind] >= self._limits[kind].total_tokens + WAITING.get(kind, inf):
            error = RateLimited(f"{WAITING[kind]} charts wait to be drawn, the limit; try again in {BUSY_SECONDS} s")
            error.retry_after = BUSY_SECONDS
            raise error
        # Counted here, since a request reaches the queue of the limit a turn of the event loop later.
        self._asked[kind] += 1
        try:
            return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limits[kind])
        finally:
            self._asked[kind] -= 1


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
        self._places = asyncio.Semaphore(THREADS["read"])

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
