"""The threads of requests, with a limit for each kind of work, so that no `reader` delays other work.

Python runs one thread at a time. More threads do not finish more work, and delay other threads and the event loop, so
the limits are small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from math import inf
from typing import Literal, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, Lock, to_thread

from evalsvc.errors import RateLimited

READS = 4
"""The most concurrent reads."""

WRITES = 8
"""The most concurrent writing requests. One writes to the database, while others read files or a remote store."""

STREAMS = 1
"""The most pieces of tables that are made concurrently, for all clients together."""

UPLOADS = 4
"""The most pieces of uploads that are written to the disk concurrently."""

DIGESTS = 2
"""The most uploads whose digest is computed concurrently, which takes seconds for a large file."""

PAGES = 3
"""The most pages of the dashboard that are made concurrently. A page takes longer than a read, which waits for none."""

PICTURES = 1
"""The most charts whose values are read concurrently to make pictures, so that pages and other reads have threads."""

RENDERS = 2
"""The most charts that are rendered concurrently, each in a process that takes 120 MB and seconds of a core."""

PARSES = 1
"""The most large JSON bodies that are parsed concurrently. The parser does not yield to other threads."""

IMPORTS = 1
"""The most concurrent imports. An import of 250,000 values takes 300 MB of memory."""

PROBES = 2
"""The most concurrent readiness checks."""

Kind = Literal["read", "write", "stream", "upload", "digest", "page", "picture", "render", "parse", "import", "probe"]

WAITING: Mapping[Kind, int] = {"picture": 32, "render": 16}
"""The most requests that wait for a thread, by kind of work. Further requests are refused."""

BUSY_SECONDS = 10
"""The seconds after which a client may ask again that was refused because too many requests wait."""

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """The limits of an application. Requests beyond a limit wait in the order of arrival."""

    def __init__(self) -> None:
        numbers: dict[Kind, int] = {
            "read": READS,
            "write": WRITES,
            "stream": STREAMS,
            "upload": UPLOADS,
            "digest": DIGESTS,
            "page": PAGES,
            "picture": PICTURES,
            "render": RENDERS,
            "parse": PARSES,
            "import": IMPORTS,
            "probe": PROBES,
        }
        self._limits = {kind: CapacityLimiter(number) for kind, number in numbers.items()}
        self._asked: Counter[Kind] = Counter()
        """The requests that wait for a thread or have one."""
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    def turn(self, caller: str) -> Lock:
        """Return the lock of a caller, for work that one request of a caller at a time may do."""
        return self._turns.setdefault(caller, Lock())

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """Yield the pieces of an answer. No thread is occupied between two pieces, while the client reads."""
        while (piece := await self.run("stream", _next, pieces)) is not None:
            yield piece

    async def run(self, kind: Kind, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread for this kind of work, and return the result."""
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


def _next(pieces: Iterator[T]) -> T | None:
    return next(pieces, None)
