"""The scheduler between a service and workers on other machines. It keeps no state, so a new one can replace it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import Scheduler, Security

from evalsvc.cluster.settings import NO_DASHBOARD, SCRATCH_PREFIX, configure, security_of
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, PortInUse, os_reason


def run_scheduler(settings: Settings, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Run a scheduler until SIGTERM or SIGINT; `announce` gets its address."""
    security = security_of(settings)
    _require_free(host, port)
    with TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
        configure(settings, Path(scratch))
        asyncio.run(_serve(security, host, port, announce))


def _require_free(host: str, port: int) -> None:
    """Raise a clear error if the address cannot be used, because Dask wraps the reason in errors of its own."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"port {port} of {host} is in use; choose another with --port") from None
        if error.errno == errno.EACCES:
            raise InvalidRequest(
                f"--port {port}: only root may listen on this port; choose a port above 1023"
            ) from None
        raise InvalidRequest(
            f"--host {host}: this machine lacks the address ({os_reason(error)}); use one of its addresses, or 0.0.0.0"
        ) from None


async def _serve(security: Security, host: str, port: int, announce: Callable[[str], None]) -> None:
    scheduler = await Scheduler(host=host, port=port, protocol="tls://", security=security, **NO_DASHBOARD)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    announce(scheduler.address)
    await ended.wait()
    await scheduler.close()
