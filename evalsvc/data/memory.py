"""A limit on the memory that reading a `submitter`'s files may take."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from evalsvc.errors import InvalidData

MEMORY = 4 << 30
"""Bytes that the benchmarks of a task, or a tokenizer, may take: a file of few characters can ask for any number."""

_lock = threading.Lock()
_within: list[tuple[int, int]] = []
"""Limits before each of the contexts that this process is in; the outermost context decides."""


def private_bytes() -> int:
    """Return the memory that this process has reserved for data of its own; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as stream:  # a third of the time of `Path.read_text`
            return int(stream.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


@contextmanager
def limited_memory(size: int, what: str) -> Iterator[None]:
    """Let this process take at most `size` bytes more than it has, within the context.

    A request beyond the limit is a MemoryError in Python, but ends the process in a library that cannot do without, and
    the worker's nanny then starts another. The limit is the whole process's, and one shard at a time runs in a process.
    """
    with _lock:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        if not _within and (taken := private_bytes()):
            bounds = [taken + size, *(bound for bound in before if bound != resource.RLIM_INFINITY)]
            resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), before[1]))
        _within.append(before)
    try:
        yield
    except MemoryError:
        raise InvalidData(f"{what} takes more than {size:,} bytes of memory; make it smaller") from None
    finally:
        with _lock:
            if len(_within) == 1:
                resource.setrlimit(resource.RLIMIT_DATA, _within[0])
            # Contexts of other threads may end in any order, and the first limit is the one to return to.
            _within.pop()
