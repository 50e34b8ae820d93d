"""Serving the application on a port. What can be wrong is found before anything is started."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from evalsvc.api.app import create_app
from evalsvc.config import Settings
from evalsvc.errors import InternalError, InvalidRequest, PortInUse
from evalsvc.store.session import open_store

DRAIN_SECONDS = 5
"""How long requests that run may take when the service stops."""

KEEP_ALIVE_SECONDS = 75
"""How long a connection may be idle. A client that asks again at the moment of its end gets an error in the place of an
answer; with uvicorn's own 5 s that is any client which asks every few seconds, or is busy for so long."""


def serve(
    settings: Settings, announce: Callable[[str], None], *, migrate: bool = False, insecure: bool = False
) -> None:
    """Serve until a signal; `announce` gets the address once the service answers.

    Raises:
        PortInUse, DataDirectoryUnusable, DatabaseUnusable, SchemaVersionMismatch, InvalidSuite, InvalidRequest.
    """
    check_address(settings.host, insecure)
    with listen(settings.host, settings.port) as listener:
        open_store(settings.database, migrate).close()
        config = uvicorn.Config(
            create_app(settings),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        server = _Server(config, lambda: announce(_address(settings.host, listener)))
        server.run(sockets=[listener])
        if not server.started:
            raise InternalError("the service could not start; its log above says why")


def check_address(host: str, insecure: bool) -> None:
    """Refuse an address that others can reach, unless that is asked for: there are no tokens yet."""
    if not insecure and not _is_loopback(host):
        raise InvalidRequest(
            f"--host {host}: everyone who reaches this address could use the service, which has no authentication yet; "
            "use 127.0.0.1 and an SSH tunnel, or add --insecure"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already, so nobody can take the port between this check and the start.

    Raises:
        PortInUse: another program has it.
        InvalidRequest: no such port or address on this machine.
    """
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"--port {port}: a port lies between 0 and 65535; 0 takes a free one")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Its connections inherit this. Without it, head and body of an answer travel apart, and the second waits for
        # the client's delayed acknowledgement of the first: 40 ms on each request of a kept connection.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is in use by another program, perhaps another evalsvc; "
                "choose another with --port (EVALSVC_PORT), 0 takes a free one"
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise InvalidRequest(f"cannot listen on {host} port {port}: {reason}; change --host or --port") from None


class _Server(uvicorn.Server):
    """Says when it answers: before that, whoever waits for the address would find nothing there."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
