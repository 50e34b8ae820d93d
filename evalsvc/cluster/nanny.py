"""A worker process and its nanny: what they run, how they are told to stop, and what is known of their death.

The nanny starts the worker process, starts it again whenever it dies, and says why it died. On SIGTERM the worker
finishes the shard that it runs, takes no other, waits until the result is stored, and goes: Dask itself does not drain.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from distributed import Event, Nanny, Worker, get_worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

from evalsvc.cluster.devices import worker_environment, worker_settings
from evalsvc.cluster.private import ExitNanny, has_tasks, has_work, plugin_of, send_heartbeat
from evalsvc.cluster.settings import NO_DASHBOARD
from evalsvc.config import Settings
from evalsvc.errors import Cancelled
from evalsvc.log import about, configure_logs, ids_in

log = logging.getLogger(__name__)

PROGRESS_TOPIC = "evalsvc-progress"

DEATH_TOPIC = "evalsvc-death"
"""Messages `{"worker": address, "cause": text}` of nannies whose worker process has died."""

REPORT_INTERVAL = 0.25
"""Seconds between two progress messages of a shard; each also asks whether the shard was cancelled (1.6 ms)."""

DRAIN_POLL = 0.05

RESOURCES = {"device": 1}

OOM_COUNT = Path("/proc/vmstat")
"""Has how many processes the kernel has killed for want of memory since the machine was started."""

_draining = threading.Event()


class WorkerDrains(Exception):
    """The worker takes no shard any more; the scheduler had not heard of it yet."""


def execute(target: str, key: str, request: object) -> object:
    """On a worker: import `target` and call it with the request, a `report` that raises Cancelled, and the settings.

    Raises:
        WorkerDrains: it was not begun.
    """
    worker = get_worker()
    if _draining.is_set():
        raise WorkerDrains(worker.address)
    setup: WorkerSetup = plugin_of(worker, WorkerSetup.name)
    module, _, name = target.partition(":")
    with about(**ids_in(key), worker=worker.address):
        log.info("begun")
        begun = time.monotonic()
        try:
            function: Callable[[object, Report, Settings], object] = getattr(importlib.import_module(module), name)
            return function(request, Report(key), setup.settings)
        finally:
            log.info("ended after %.3f s", time.monotonic() - begun)


class Progress(TypedDict):
    """A message of PROGRESS_TOPIC."""

    key: str
    """Name of the call."""
    done: int
    worker: str
    """Address of the worker."""


class Report:
    """Sends progress, at once and then once per REPORT_INTERVAL at most, and looks for the cancel flag from then on."""

    def __init__(self, key: str) -> None:
        self.key = key
        """Name of the call."""
        self._worker = get_worker()
        self._cancelled = Event(cancel_name(key))
        self._send(0)

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last < REPORT_INTERVAL:
            return
        self._send(done)
        if self._is_cancelled():
            raise Cancelled("the evaluation was cancelled")

    def _send(self, done: int) -> None:
        self._last = time.monotonic()
        message: Progress = {"key": self.key, "done": done, "worker": self._worker.address}
        self._worker.log_event(PROGRESS_TOPIC, message)

    def _is_cancelled(self) -> bool:
        """A busy machine may not get through to the scheduler in time; the work is not lost over that."""
        try:
            return bool(self._cancelled.is_set())
        except OSError as error:
            log.warning("the scheduler did not say whether %s was cancelled (%s); asking again later", self.key, error)
            return False


def cancel_name(key: str) -> str:
    return f"cancel/{key}"


class WorkerSetup(WorkerPlugin):  # type: ignore[misc]
    """What a worker process gets from its nanny: the settings of its shards, its logs, and what signals do to it.

    A service manager, a batch system or Ctrl-C sends them to all processes at once, and the worker's parent is the one
    that decides: SIGINT is never for the worker, and SIGTERM only where it stands for itself.
    """

    name = "evalsvc-worker"

    def __init__(self, settings: Settings, drains: bool) -> None:
        self.settings = settings
        self._drains = drains
        self._task: asyncio.Task[None] | None = None

    def setup(self, worker: Worker) -> None:
        configure_logs(self.settings.log_format, self.settings.log_level)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._drains:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._begin, worker)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _begin(self, worker: Worker) -> None:
        if self._task is None:
            _draining.set()
            self._task = asyncio.ensure_future(self._drain(worker))

    async def _drain(self, worker: Worker) -> None:
        if has_tasks(worker):
            # The heartbeat has `is_draining` in it, so that nothing more is dispatched.
            await send_heartbeat(worker)
        while has_work(worker):
            await asyncio.sleep(DRAIN_POLL)
        done_at = time.monotonic()
        # The result is in this process until the service has stored it and lets go of it.
        while has_tasks(worker) and time.monotonic() - done_at < self.settings.grace:
            await asyncio.sleep(DRAIN_POLL)
        await worker.close(reason="drained")


def is_draining(_worker: Worker) -> bool:
    """A metric of the worker, which the scheduler gets with each heartbeat."""
    return _draining.is_set()


class WorkerNanny(ExitNanny):
    """A nanny that says why its worker process died."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._oom_kills = oom_kills()

    def on_worker_exit(self, exitcode: int) -> None:
        struck, self._oom_kills = oom_kills() > self._oom_kills, oom_kills()
        address = self.worker_address
        # 0: it was told to go.
        if exitcode != 0 and address is not None and self.status == Status.running:
            cause = cause_of_death(exitcode, struck)
            log.warning("the worker process %s was lost: %s", address, cause)
            self.log_event(DEATH_TOPIC, {"worker": address, "cause": cause})


def kill_worker(dask_worker: Nanny) -> None:
    """In a nanny, which Dask gives under this name: kill -9 of its worker process."""
    if dask_worker.pid:
        os.kill(dask_worker.pid, signal.SIGKILL)


def cause_of_death(exitcode: int, oom_struck: bool = False) -> str:
    """What an exit code says, for people; `oom_struck`: the kernel has killed some process for want of memory."""
    if exitcode >= 0:
        return f"it exited with code {exitcode}"
    try:
        name = f" ({signal.Signals(-exitcode).name})"
    except ValueError:
        name = ""
    cause = f"it was killed by signal {-exitcode}{name}"
    if exitcode == -signal.SIGKILL and oom_struck:
        cause += ", most likely by the kernel, for want of memory"
    return cause


def oom_kills() -> int:
    try:
        lines = OOM_COUNT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def nanny_options(settings: Settings, device: str, processes: int, drains: bool) -> dict[str, object]:
    """What makes a WorkerNanny's worker serve `device`, one of `processes` on this machine.

    `drains`: SIGTERM means the worker; False where its parent drains it.
    """
    return {
        "nthreads": 1,
        "resources": RESOURCES,
        "memory_limit": 0,
        "env": worker_environment(device),
        "silence_logs": logging.ERROR,
        **NO_DASHBOARD,
        "plugins": (WorkerSetup(worker_settings(settings, device, processes), drains),),
        "metrics": {"draining": is_draining},
    }
