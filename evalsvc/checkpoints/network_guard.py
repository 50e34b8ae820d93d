"""A block on the network for one thread, whatever code the thread runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_this_thread = threading.local()


@contextmanager
def without_network() -> Iterator[None]:
    """Refuse connections of this thread to other machines within the context, with ConnectionRefusedError."""
    before = getattr(_this_thread, "blocked", False)
    _guard_sockets()
    _this_thread.blocked = True
    try:
        yield
    finally:
        _this_thread.blocked = before


@cache
def _guard_sockets() -> None:
    """Add an audit hook, since code may connect in any way; only threads in `without_network` are affected."""
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo") and getattr(_this_thread, "blocked", False):
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
            return  # a local socket
        raise ConnectionRefusedError("the network is not used in an evaluation")
