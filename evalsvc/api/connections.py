"""Connections: how many there may be, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 500
"""Beyond them, requests are answered by 503 until others are closed."""

HEAD_SECONDS = 20.0
"""In which the head of a request must have come, from the first byte of the connection or the end of the one before."""


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, which waits for the head of a request as long as its client cares to hold the connection."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begin to count where a head is due, and go on counting while it comes byte by byte.

        Likewise where the rest of a body is, whose request was answered without it: nobody reads that any more.
        """
        answered = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        if self.conn.their_state is not h11.IDLE and not answered:
            self._stop()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
