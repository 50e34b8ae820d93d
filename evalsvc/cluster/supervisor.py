"""`evalsvc worker`: keeps a worker running on each device of this machine.

supervisor → a nanny process per device → its worker process. Each restarts the process below it; if the scheduler goes
away, the nanny reconnects. The first SIGTERM or SIGINT drains all workers, the second ends them immediately.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from evalsvc.cluster.devices import check_devices, device_list
from evalsvc.cluster.nanny import WorkerNanny, cause_of_death, nanny_options
from evalsvc.cluster.settings import SCRATCH_PREFIX, configure, security_of
from evalsvc.cluster.unreachable import explain_scheduler
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest
from evalsvc.log import configure_logs

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
"""Back-off: seconds before a process is restarted, doubled each time, and reset after STEADY seconds of running."""

STEADY = 60.0

DRAIN_INTERVAL = 1.0

DRAIN, END = "drain", "end"
"""Commands of a supervisor to its nannies."""


class Backoff:
    """Back-off between restarts."""

    def __init__(self) -> None:
        self._wait = FIRST_WAIT
        self._started = time.monotonic()

    def started(self) -> None:
        self._started = time.monotonic()

    def wait(self) -> float:
        """Return the seconds to wait before restarting a process that was started at `started` and has ended."""
        if time.monotonic() - self._started > STEADY:
            self._wait = FIRST_WAIT
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT)
        return wait


def run_workers(settings: Settings, scheduler: str, announce: Callable[[str], None]) -> int:
    """Serve an existing scheduler with one worker process per device until a signal arrives; return the exit code.

    `announce` gets a line about what is started, once the settings are checked.

    Raises:
        InvalidRequest: the address is not tls://, or a certificate file or device is missing.
    """
    if not scheduler.startswith("tls://"):
        raise InvalidRequest(f"{scheduler}: the scheduler's address must begin with tls://, e.g. tls://10.0.0.1:8786")
    security_of(settings)
    devices = device_list(settings.devices)
    check_devices(devices)
    announce(f"evalsvc workers on {', '.join(devices)} for {scheduler}; stop them by Ctrl-C, or kill {os.getpid()}")
    return Supervisor(settings.without_secrets(), scheduler, devices).run()


class Supervisor:
    """Runs one process per device, and restarts each when it ends."""

    def __init__(self, settings: Settings, scheduler: str, devices: list[str]) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._devices = devices
        self._signals = 0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._commands: dict[int, Connection] = {}

    def run(self) -> int:
        """Run until a signal arrives and all workers have ended. Return 0 if they were drained, otherwise 128 +
        signal."""
        last = 0

        def note(number: int, _frame: FrameType | None) -> None:
            nonlocal last
            last = number
            self._signals += 1

        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        keepers = [
            threading.Thread(target=self._keep, args=(index,), daemon=True) for index in range(len(self._devices))
        ]
        try:
            for keeper in keepers:
                keeper.start()
            heard = 0
            while any(keeper.is_alive() for keeper in keepers):
                # Signal handlers run between two waits; writing to a pipe inside a handler is not safe.
                next(keeper for keeper in keepers if keeper.is_alive()).join(0.1)
                if self._signals > heard:
                    heard = self._signals
                    self._say(DRAIN if heard == 1 else END)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return 0 if self._signals < 2 else 128 + last

    def _say(self, command: str) -> None:
        if command == DRAIN:
            log.info("draining: running shards finish, no new ones are accepted; a second signal ends them immediately")
        with self._lock:
            self._ending.set()
            for commands in self._commands.values():
                _send(commands, command)

    def _keep(self, index: int) -> None:
        backoff = Backoff()
        while not self._ending.is_set():
            backoff.started()
            process = self._start(index)
            process.join()
            with self._lock:
                self._commands.pop(index).close()
            if not self._ending.is_set():
                wait, cause = backoff.wait(), cause_of_death(process.exitcode or 0)
                log.warning("the nanny of %s ended: %s; restarting it in %g s", self._devices[index], cause, wait)
                self._ending.wait(wait)

    def _start(self, index: int) -> multiprocessing.process.BaseProcess:
        context = multiprocessing.get_context("spawn")
        heard, commands = context.Pipe(duplex=False)
        arguments = (self._settings, self._scheduler, self._devices[index], len(self._devices), heard)
        process = context.Process(target=serve_device, args=arguments, name=f"evalsvc worker {self._devices[index]}")
        process.start()
        heard.close()
        with self._lock:
            self._commands[index] = commands
            if self._ending.is_set():
                _send(commands, DRAIN)
        return process


def _send(commands: Connection, command: str) -> None:
    try:
        commands.send(command)
    except OSError:
        return  # the process has ended


def serve_device(settings: Settings, scheduler: str, device: str, processes: int, heard: Connection) -> None:
    """Serve the scheduler on `device` until the supervisor says to stop, or is gone. Runs in the process of a nanny."""
    # Signals reach all processes simultaneously; the supervisor decides what they mean.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    configure_logs(settings.log_format, settings.log_level)
    with TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
        configure(settings, Path(scratch), processes)
        asyncio.run(_Service(settings, scheduler, device, processes, heard).run())
    # A worker process that Dask was starting may remain, and ignores SIGTERM like its parent. The end of this process
    # would wait for it forever.
    for left in multiprocessing.active_children():
        left.kill()


class _Service:
    """A sequence of nannies: a new one each time that the scheduler is reachable."""

    def __init__(self, settings: Settings, scheduler: str, device: str, processes: int, heard: Connection) -> None:
        self._scheduler = scheduler
        self._device = device
        self._security = security_of(settings)
        self._options = nanny_options(settings, device, processes, drains=True)
        self._heard = heard
        self._nanny: WorkerNanny | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        asyncio.get_running_loop().add_reader(self._heard.fileno(), self._listen)
        serving = asyncio.ensure_future(self._serve())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        while not serving.done():
            self._drain(serving)
            await asyncio.wait((serving,), timeout=DRAIN_INTERVAL)

    async def _serve(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            backoff.started()
            cause = await self._serve_once()
            if self._stopping.is_set():
                return
            wait = backoff.wait()
            log.warning("the scheduler %s %s; reconnecting in %g s", self._scheduler, cause, wait)
            await asyncio.sleep(wait)

    async def _serve_once(self) -> str:
        """Serve until the scheduler or the worker goes away. Return what happened, as the end of a sentence."""
        try:
            async with WorkerNanny(self._scheduler, security=self._security, **self._options) as self._nanny:
                log.info("worker %s on %s serves %s", self._nanny.worker_address, self._device, self._scheduler)
                await self._nanny.finished()
            return "went away, or the worker was drained"
        except Exception as error:  # connecting fails in many ways
            return f"does not answer ({explain_scheduler(error, self._scheduler)})"
        finally:
            self._nanny = None

    def _listen(self) -> None:
        try:
            command = self._heard.recv()
        except (EOFError, OSError):
            # The supervisor is gone, so nobody would restart this process.
            command = DRAIN
            asyncio.get_running_loop().remove_reader(self._heard.fileno())
        if command == END:
            if self._nanny is not None and self._nanny.pid:
                os.kill(self._nanny.pid, signal.SIGKILL)
            os._exit(1)
        self._stopping.set()

    def _drain(self, serving: asyncio.Future[None]) -> None:
        """Signal the worker process. The caller repeats this, because the process may just have died and been
        replaced."""
        if self._nanny is None:
            serving.cancel()
        elif self._nanny.pid:
            os.kill(self._nanny.pid, signal.SIGTERM)
