"""`evalsvc worker` keeps a worker running on each device of this machine; `evalsvc scheduler` runs a scheduler.

One process has a nanny for each device, which restarts its worker process. If the scheduler goes away, a new nanny
connects when there is one again. The first SIGTERM or SIGINT drains all workers, the second ends them immediately.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import Scheduler, Security

from evalsvc.cluster.devices import check_devices, device_list
from evalsvc.cluster.nanny import WorkerNanny, nanny_options
from evalsvc.cluster.settings import NO_DASHBOARD, SCRATCH_PREFIX, configure, security_of
from evalsvc.config import Settings
from evalsvc.connection_errors import explain_scheduler
from evalsvc.errors import InvalidRequest, PortInUse, os_reason

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
"""Back-off: seconds before a nanny is replaced, doubled each time, and reset after STEADY seconds of running."""

STEADY = 60.0

DRAIN_INTERVAL = 1.0


def end_signals() -> list[signal.Signals]:
    """Return the signals that end a process of the cluster: SIGHUP too, unless it is ignored as under `nohup`."""
    ignores = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignores else [signal.SIGHUP])]


def next_wait(last: float, ran: float) -> float:
    """Return the back-off after the `last` one [0 before the first], of a nanny that ran for so many seconds."""
    return min(2 * last, LONGEST_WAIT) if last and ran <= STEADY else FIRST_WAIT


def run_workers(settings: Settings, scheduler: str, announce: Callable[[str], None]) -> int:
    """Serve an existing scheduler with one worker process per device until a signal arrives; return the exit code."""
    if not scheduler.startswith("tls://"):
        raise InvalidRequest(f"{scheduler}: the scheduler's address must begin with tls://, e.g. tls://10.0.0.1:8786")
    security_of(settings)
    devices = device_list(settings.devices)
    check_devices(devices)
    announce(f"evalsvc workers on {', '.join(devices)} for {scheduler}; stop them by Ctrl-C, or kill {os.getpid()}")
    with TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
        configure(settings, Path(scratch), len(devices))
        asyncio.run(Supervisor(settings, scheduler, devices).run())
    # A worker process that Dask was starting may remain, and ignores SIGTERM. The end of this one would wait for it.
    for left in multiprocessing.active_children():
        left.kill()
    return 0


class Supervisor:
    """The nannies of this machine: for each device a new one each time that the scheduler is reachable."""

    def __init__(self, settings: Settings, scheduler: str, devices: Sequence[str]) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._devices = devices
        self._security = security_of(settings)
        self._nannies: dict[int, WorkerNanny] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run until a signal arrives and all workers have ended."""
        for number in end_signals():
            asyncio.get_running_loop().add_signal_handler(number, self._signal, number)
        serving = {index: asyncio.ensure_future(self._serve(index)) for index in range(len(self._devices))}
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((*serving.values(), stopping), return_when=asyncio.FIRST_COMPLETED)
        while pending := {index: task for index, task in serving.items() if not task.done()}:
            # Repeat the signal, because a worker process may just have died and been replaced.
            for index, task in pending.items():
                if (nanny := self._nannies.get(index)) is None:
                    task.cancel()
                elif nanny.pid:
                    os.kill(nanny.pid, signal.SIGTERM)
            await asyncio.wait(pending.values(), timeout=DRAIN_INTERVAL)
        for task in serving.values():
            if not task.cancelled():
                task.result()

    def _signal(self, number: int) -> None:
        if self._stopping.is_set():
            for process in multiprocessing.active_children():
                process.kill()
            os._exit(128 + number)
        log.info("draining: running shards finish, no new ones are accepted; a second signal ends them immediately")
        self._stopping.set()

    async def _serve(self, index: int) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            cause = await self._serve_once(index)
            if self._stopping.is_set():
                return
            wait = next_wait(wait, time.monotonic() - started)
            log.warning("the scheduler %s %s; reconnecting in %g s", self._scheduler, cause, wait)
            await asyncio.sleep(wait)

    async def _serve_once(self, index: int) -> str:
        device = self._devices[index]
        options = nanny_options(self._settings, device, len(self._devices), drains=True)
        try:
            async with WorkerNanny(self._scheduler, security=self._security, **options) as nanny:
                self._nannies[index] = nanny
                log.info("worker %s on %s serves %s", nanny.worker_address, device, self._scheduler)
                await nanny.finished()
            return "went away, or the worker was drained"
        except Exception as error:  # connecting fails in many ways
            return f"does not answer ({explain_scheduler(error, self._scheduler)})"
        finally:
            self._nannies.pop(index, None)


def run_scheduler(settings: Settings, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Run a scheduler until SIGTERM or SIGINT; `announce` gets its address."""
    security = security_of(settings)
    _require_free(host, port)
    with TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
        configure(settings, Path(scratch))
        asyncio.run(_serve(security, host, port, announce))


def _require_free(host: str, port: int) -> None:
    try:  # Dask wraps the reason in errors of its own
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
    for number in end_signals():
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    announce(scheduler.address)
    await ended.wait()
    await scheduler.close()
