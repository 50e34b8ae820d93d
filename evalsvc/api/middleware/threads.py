"""The threads of requests, with a limit for each kind of work, so that no kind delays another.

Python runs one thread at a time. More threads do not finish more work, and delay other threads and the event loop, so
the limits are small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

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

PAGES = 4
"""The most pages of the dashboard that are made at once. A page waits for reads, and so has threads of its own kind."""

PROBES = 2
"""The most concurrent readiness checks."""

Kind = Literal["read", "write", "stream", "upload", "digest", "page", "probe"]

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
            "probe": PROBES,
        }
        self._limits = {kind: CapacityLimiter(number) for kind, number in numbers.items()}

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """Yield the pieces of an answer. No thread is occupied between two pieces, while the client reads."""
        while (piece := await self.run("stream", _next, pieces)) is not None:
            yield piece

    async def run(self, kind: Kind, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread for this kind of work, and return the result."""
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limits[kind])


def _next(pieces: Iterator[T]) -> T | None:
    return next(pieces, None)
