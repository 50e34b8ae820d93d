"""A worker process and its nanny: their settings, how they stop, and the cause of a worker's death.

The nanny starts the worker process, restarts it whenever it dies, and reports the cause of death. On SIGTERM the worker
finishes its current shard, accepts no other, waits until the result is stored, and exits: Dask itself does not drain.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distributed import Event, Nanny, Worker, get_worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

from evalsvc.cluster.devices import worker_environment, worker_settings
from evalsvc.cluster.private import ExitNanny, has_tasks, has_work, plugin_of, send_heartbeat
from evalsvc.cluster.settings import NO_DASHBOARD
from evalsvc.config import Settings
from evalsvc.errors import Cancelled
from evalsvc.files.codec import Codec
from evalsvc.installation import code_digest
from evalsvc.log import about, configure_logs, ids_in

log = logging.getLogger(__name__)

PROGRESS_TOPIC = "evalsvc-progress"
"""Topic of messages `{"key": name of the call, "done": units, "worker": address}`."""

DEATH_TOPIC = "evalsvc-death"
"""Topic of messages `{"worker": address, "cause": text}` of nannies whose worker process has died."""

REPORT_INTERVAL = 0.25
"""Seconds between two progress messages of a shard, with a check whether the shard was cancelled (1.6 ms)."""

DRAIN_POLL = 0.05

RESOURCES = {"device": 1}

OOM_COUNT = Path("/proc/vmstat")
"""File with the number of processes that the kernel has killed for lack of memory since the machine started."""

_draining = threading.Event()


@dataclass(frozen=True)
class Reply:
    """The end of a call on a worker, as plain data: the service loads no pickle, so an exception is a text."""

    kind: Literal["result", "error", "cancelled", "refused"]
    """`refused`: the worker drains, and the call was not begun."""
    content: bytes = b""
    message: str = ""


REPLY: Codec[Reply] = Codec(Reply)


def execute(target: str, key: str, request: object) -> bytes:
    """Import `target` on a worker, call it with the request, a `report` that raises Cancelled, and the settings, and
    return its bytes or its error as a packed `Reply`."""
    try:
        worker = get_worker()
        if _draining.is_set():
            return REPLY.pack(Reply("refused"))
        setup: WorkerSetup = plugin_of(worker, WorkerSetup.name)
        module, _, name = target.partition(":")
        with about(**ids_in(key), worker=worker.address):
            log.info("begun")
            begun = time.monotonic()
            try:
                function: Callable[[object, Report, Settings], bytes] = getattr(importlib.import_module(module), name)
                reply = Reply("result", function(request, Report(key), setup.settings))
            finally:
                log.info("ended after %.3f s", time.monotonic() - begun)
        return REPLY.pack(reply)
    except Cancelled:
        return REPLY.pack(Reply("cancelled"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a library's Rust code is not an Exception
        log.exception("%s failed", key)
        message = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        return REPLY.pack(Reply("error", message=message))


class Report:
    """Callback that sends progress of a call at most once per REPORT_INTERVAL, and raises Cancelled if it is."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._worker = get_worker()
        self._cancelled = Event(cancel_name(key))
        self._send(0)

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last < REPORT_INTERVAL:
            return
        self._send(done)
        try:
            is_cancelled = self._cancelled.is_set()
        except OSError as error:  # no work is lost if the scheduler does not answer in time
            log.warning("the scheduler did not answer whether %s was cancelled (%s); retrying later", self.key, error)
            is_cancelled = False
        if is_cancelled:
            raise Cancelled("the evaluation was cancelled")

    def _send(self, done: int) -> None:
        self._last = time.monotonic()
        self._worker.log_event(PROGRESS_TOPIC, {"key": self.key, "done": done, "worker": self._worker.address})


def cancel_name(key: str) -> str:
    return f"cancel/{key}"


class WorkerSetup(WorkerPlugin):  # type: ignore[misc]
    """Worker plugin that sets the settings of shards, the logs, and the handling of signals. A service manager, a batch
    system, a closed terminal or Ctrl-C signals all processes simultaneously, but the worker's parent decides when the
    worker stops. So a worker ignores SIGINT and SIGHUP, and obeys SIGTERM only if its parent does not drain it."""

    name = "evalsvc-worker"

    def __init__(self, settings: Settings, drains: bool) -> None:
        self.settings = settings
        self._drains = drains
        self._task: asyncio.Task[None] | None = None

    def setup(self, worker: Worker) -> None:
        configure_logs(self.settings.log_format, self.settings.log_level)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
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
            # The heartbeat reports `is_draining`, so that nothing more is dispatched.
            await send_heartbeat(worker)
        while has_work(worker):
            await asyncio.sleep(DRAIN_POLL)
        done_at = time.monotonic()
        # The result stays in this process until the service has stored and released it.
        while has_tasks(worker) and time.monotonic() - done_at < self.settings.grace:
            await asyncio.sleep(DRAIN_POLL)
        await worker.close(reason="drained")


def is_draining(_worker: Worker) -> bool:
    return _draining.is_set()


def code_of(_worker: Worker) -> str:
    return code_digest()


class WorkerNanny(ExitNanny):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._oom_kills = oom_kills()

    def on_worker_exit(self, exitcode: int) -> None:
        struck, self._oom_kills = oom_kills() > self._oom_kills, oom_kills()
        address = self.worker_address
        # Exit code 0: the process was asked to stop.
        if exitcode != 0 and address is not None and self.status == Status.running:
            cause = cause_of_death(exitcode, struck)
            log.warning("the worker process %s was lost: %s", address, cause)
            self.log_event(DEATH_TOPIC, {"worker": address, "cause": cause})


def kill_worker(dask_worker: Nanny) -> None:
    """Send SIGKILL to a nanny's worker process. Dask passes the nanny as `dask_worker`."""
    if dask_worker.pid:
        os.kill(dask_worker.pid, signal.SIGKILL)


def cause_of_death(exitcode: int, oom_struck: bool = False) -> str:
    """Describe an exit code for people; `oom_struck`: the kernel has killed a process for lack of memory."""
    if exitcode >= 0:
        return f"it exited with code {exitcode}"
    try:
        name = f" ({signal.Signals(-exitcode).name})"
    except ValueError:
        name = ""
    cause = f"it was killed by signal {-exitcode}{name}"
    if exitcode == -signal.SIGKILL and oom_struck:
        cause += ", most likely by the kernel, for lack of memory"
    elif exitcode == -signal.SIGABRT:
        cause += ", as a library ends it that gets no more memory, for example for a tokenizer that a suite names"
    return cause


def oom_kills() -> int:
    try:
        lines = OOM_COUNT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def nanny_options(settings: Settings, device: str, processes: int, drains: bool) -> dict[str, object]:
    return {
        "nthreads": 1,
        "resources": RESOURCES,
        "memory_limit": 0,
        "env": worker_environment(device),
        "silence_logs": logging.ERROR,
        **NO_DASHBOARD,
        "plugins": (WorkerSetup(worker_settings(settings, device, processes), drains),),
        "metrics": {"draining": is_draining, "code": code_of},
    }
