"""Limits of the connections of a `stranger`: their number, and the times for sending and for reading."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from evalsvc.api.errors import STATUS, problem
from evalsvc.api.middleware.rates import address_key
from evalsvc.config import Network
from evalsvc.errors import EvalsvcError, NotReady, RateLimited

log = logging.getLogger(__name__)

TLS_HANDSHAKE = b"\x16\x03"
"""First bytes of a TLS connection; no HTTP request begins with them."""

TLS_WARNING_SECONDS = 60.0
"""Seconds between two warnings about clients that speak https, since anyone can cause one."""

CONNECTIONS, PER_ADDRESS = 1000, 400
"""The most open connections, and those from an address or an IPv6 network of 64 bits. Others are refused."""

REFUSED = 100
"""The most concurrent answers to refused connections. Further connections are closed without an answer."""

HEAD_SECONDS, REFUSED_SECONDS = 20.0, 2.0
"""Seconds in which the head of a request must arrive after the connection was opened or the last answer ended; on a
refused connection."""

WRITE_SECONDS = 30.0
"""Seconds in which a client must read a part of the pending answer. Otherwise the connection is closed."""

MAX_CHUNKS, TINY = 1_000, 64
"""The most chunks of a body whose chunks have fewer than `TINY` bytes on average. A further chunk ends the
connection."""

SEND_BYTES = 128 << 10
"""Bytes of an answer that the system buffers for each client. By the system's default of megabytes, clients that never
read would take up much memory."""


class _Chunks(h11.Connection):
    """A connection that is given up when a body comes in tiny chunks, each of which takes as long as a kilobyte."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        super().__init__(h11.SERVER)
        self._give_up = give_up
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > MAX_CHUNKS and self._bytes < self._chunks * TINY:
                self._give_up()
                return h11.NEED_DATA
        return event


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol with time limits for the head of a request and for the reading of an answer."""

    _warned_at: ClassVar[float] = -math.inf
    """Time of the last warning about a client that speaks https, by `time.monotonic`."""

    def __init__(self, *args: Any, proxies: Sequence[Network] = (), **kwargs: Any) -> None:
        """Take the arguments of H11Protocol. `proxies`: networks without a limit of connections for each address."""
        super().__init__(*args, **kwargs)
        self.conn = _Chunks(lambda: self.transport.abort())
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
        if self.scheme == "http" and self.conn.their_state is h11.IDLE and data.startswith(TLS_HANDSHAKE):
            if time.monotonic() - TimeoutProtocol._warned_at >= TLS_WARNING_SECONDS:
                TimeoutProtocol._warned_at = time.monotonic()
                log.warning(
                    "a client at %s speaks https, and the service listens by http; give the client an address that "
                    "begins with http://, or start the service with --https-cert",
                    self.client[0] if self.client else "an unknown address",
                )
            self.send_400_response("The service listens by http, not by https.")
            return
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
        host = self.client[0] if self.client else "unknown"
        self.address = address_key(host)
        others = [other for other in self.connections if isinstance(other, TimeoutProtocol) and other is not self]
        admitted = [other for other in others if not other.is_refused]
        from_address = sum(other.address == self.address for other in admitted)
        error: type[EvalsvcError] = NotReady
        if len(admitted) >= CONNECTIONS:
            reason = f"{CONNECTIONS:,} connections to the service are open, which is the limit"
        elif from_address >= PER_ADDRESS and not is_among(host, self._proxies):
            error = RateLimited
            reason = f"{PER_ADDRESS:,} connections from {self.address} are open, which is the limit for an address"
        else:
            return
        self.is_refused = True
        if len(others) - len(admitted) >= REFUSED:
            self.transport.abort()
        detail = f"{reason}; close some connections, or try again in 30 s"
        self.app = problem(STATUS[error], error.code, detail, {"Retry-After": "30", "Connection": "close"})

    def _watch(self) -> None:
        """Start the timer for the head of a request, and stop the timer once the head is complete. The timer also
        limits the rest of a body after the request was answered, since no code reads this rest."""
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
