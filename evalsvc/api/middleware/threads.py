"""The threads of requests, with a limit for each kind of work, so that no kind delays another.

Python runs one thread at a time: a further thread does no further work, and makes each other thread and the event loop
wait longer. The limits are therefore small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

READS = 4
"""The most concurrent reads."""

WRITES = 8
"""The most concurrent writing requests. One of them holds the database; others read files or a remote store."""

STREAMS = 1
"""The most tables whose pieces are made concurrently, however many clients read one."""

UPLOADS = 4
"""Parts of uploads that are written at once; the disk makes them wait, not the others."""

DIGESTS = 2
"""Uploads whose digest is computed from the disk at once, which takes seconds for a large file."""

PROBES = 2
"""The most concurrent readiness checks."""

Kind = Literal["read", "write", "stream", "upload", "digest", "probe"]

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Limits of one application. A request beyond a limit waits, the first one first."""

    def __init__(self) -> None:
        numbers: dict[Kind, int] = {
            "read": READS,
            "write": WRITES,
            "stream": STREAMS,
            "upload": UPLOADS,
            "digest": DIGESTS,
            "probe": PROBES,
        }
        self._limits = {kind: CapacityLimiter(number) for kind, number in numbers.items()}

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """Yield the pieces of an answer. No thread is held between two pieces, while the client reads."""
        while (piece := await self.run("stream", _next, pieces)) is not None:
            yield piece

    async def run(self, kind: Kind, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a function that is called in a thread of its kind."""
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limits[kind])


def _next(pieces: Iterator[T]) -> T | None:
    return next(pieces, None)
