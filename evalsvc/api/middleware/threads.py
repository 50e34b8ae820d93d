"""The threads that requests run in: a limit per kind of work, so that no kind takes the turns of another.

Python runs one thread at a time: a thread more is no work more, and makes each of the others, the event loop among
them, wait longer for its turn. So the limits are small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

READS = 4
"""Reads that run at once."""

WRITES = 8
"""Writing requests that run at once. One of them holds the database; the others read files or a remote store."""

STREAMS = 1
"""Tables that are written at once, in turns of a piece each; however many clients read one."""

PROBES = 2
"""Looks at whether the service is ready."""

Kind = Literal["read", "write", "stream", "probe"]

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Limits of one application. Whoever comes when a limit is reached waits for its turn, the first one first."""

    def __init__(self) -> None:
        numbers: dict[Kind, int] = {"read": READS, "write": WRITES, "stream": STREAMS, "probe": PROBES}
        self._limits = {kind: CapacityLimiter(number) for kind, number in numbers.items()}

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """The pieces of an answer; no thread is held between two of them, while the client reads."""
        while (piece := await self.run("stream", _next, pieces)) is not None:
            yield piece

    async def run(self, kind: Kind, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function gives, called in a thread of its kind."""
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limits[kind])


def _next(pieces: Iterator[T]) -> T | None:
    return next(pieces, None)
