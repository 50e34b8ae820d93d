"""Connections: how many there may be, and how long one may take to say what it wants, or to read what it asked for."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from evalsvc.api.errors import STATUS, problem
from evalsvc.api.middleware.rates import address_key
from evalsvc.config import Network
from evalsvc.errors import EvalsvcError, NotReady, RateLimited

CONNECTIONS = 1000
"""Beyond them, a new connection is answered by 503 until others are closed."""

PER_ADDRESS = 400
"""Connections from one address, or from one IPv6 network of 64 bits."""

REFUSED = 100
"""Connections beyond these that are given an answer at the same time; further ones are closed without."""

REFUSED_SECONDS = 2.0
"""In which the head of a request must have come on such a connection."""

HEAD_SECONDS = 20.0
"""In which the head of a request must have come, from the first byte of the connection or the end of the one before."""

WRITE_SECONDS = 30.0
"""In which a client must read some of what is ready to be sent, or the connection is closed."""

SEND_BYTES = 128 << 10
"""What the system takes of an answer before the client has read it; by itself it takes megabytes, all of which would be
made for clients that never read."""


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP with time limits: for the head of a request to come, and for an answer to be read."""

    def __init__(self, *args: Any, proxies: Sequence[Network] = (), **kwargs: Any) -> None:
        """`proxies`: who may have as many connections as there are."""
        super().__init__(*args, **kwargs)
        self._proxies = proxies
        self._waiting: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self.address = ""
        self.is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._admit()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def _admit(self) -> None:
        """Have the connection answered by why it is refused, where there are too many."""
        host = self.client[0] if self.client else "unknown"
        self.address = address_key(host)
        others = [other for other in self.connections if isinstance(other, TimeoutProtocol) and other is not self]
        admitted = [other for other in others if not other.is_refused]
        same = sum(other.address == self.address for other in admitted)
        error: type[EvalsvcError] = NotReady
        if len(admitted) >= CONNECTIONS:
            reason = f"{CONNECTIONS:,} connections to the service are open, as many as it takes"
        elif same >= PER_ADDRESS and not is_among(host, self._proxies):
            error = RateLimited
            reason = f"{PER_ADDRESS:,} connections from {self.address} are open, as many as it may have"
        else:
            return
        self.is_refused = True
        if len(others) - len(admitted) >= REFUSED:
            self.transport.abort()
        detail = f"{reason}; close some, or try again in 30 s"
        self.app = problem(STATUS[error], error.code, detail, {"Retry-After": "30", "Connection": "close"})

    def _watch(self) -> None:
        """Begin to count where a head is due, and go on counting while it comes byte by byte.

        Likewise where the rest of a body is, whose request was answered without it: nobody reads that any more.
        """
        answered = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        if self.conn.their_state is not h11.IDLE and not answered:
            self._stop()
        elif self._waiting is None:
            seconds = REFUSED_SECONDS if self.is_refused else HEAD_SECONDS
            self._waiting = self.loop.call_later(seconds, self.transport.close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def is_among(host: str, networks: Sequence[Network]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in networks)
