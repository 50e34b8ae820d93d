"""Remote execution by Dask distributed; the only file that knows it.

Dask is given no queue: the coordinator submits at most one shard per worker, so that a dying worker can be blamed for
one shard only, and releases every future as soon as its result is stored, so that no result is ever computed again.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import dask
from distributed import Client, Event, Future, Nanny, Scheduler, Security, get_worker
from distributed.deploy.spec import SpecCluster
from distributed.scheduler import KilledWorker

from evalsvc.config import Settings
from evalsvc.errors import Cancelled, InvalidRequest, ServiceUnreachable

log = logging.getLogger(__name__)

PROGRESS_TOPIC = "evalsvc-progress"

REPORT_INTERVAL = 0.25
"""Seconds between two progress messages of a shard; each also asks whether the shard was cancelled (1.6 ms)."""

RESOURCES = {"device": 1}

CONNECT_TIMEOUT = 10.0

DASK_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # attempts are counted in SQL
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.http.routes": ["distributed.http.health"],
    "distributed.worker.daemon": False,  # a shard may start processes of its own
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "5s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.comm.timeouts.connect": "5s",
    "distributed.comm.timeouts.tcp": "30s",
    "distributed.comm.require-encryption": True,
    "distributed.logging": {"distributed": "error"},
}

OutcomeKind: TypeAlias = Literal["result", "error", "cancelled", "worker_died", "lost"]


@dataclass(frozen=True)
class Outcome:
    """How a submitted call ended."""

    key: str
    kind: OutcomeKind
    """`error`: it raised, or could not be imported there; `cancelled`: it was asked to stop, and did; `lost`: the
    scheduler went away."""
    value: Any = None
    """The result, or the message of the error."""


class Cluster:
    """Worker processes and the way to them. Callbacks arrive on Dask's threads and must return at once."""

    def __init__(
        self, settings: Settings, on_progress: Callable[[str, int], None], on_outcome: Callable[[Outcome], None]
    ) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._on_outcome = on_outcome
        self._cluster: SpecCluster | None = None
        self._client: Client | None = None
        self._futures: dict[str, Future] = {}
        self._events: dict[str, Event] = {}
        self._places: dict[str, tuple[str, int]] = {}

    def start(self) -> None:
        """Start a cluster of this machine's devices, or connect to the scheduler of the settings; blocks.

        Raises:
            ServiceUnreachable: the scheduler does not answer.
            InvalidRequest: a device or a certificate file of the settings is not there.
        """
        configure(self._settings)
        if self._settings.scheduler:
            security = security_of(self._settings)
            try:
                self._client = Client(self._settings.scheduler, security=security, timeout=CONNECT_TIMEOUT)
            except (OSError, ValueError) as error:
                raise ServiceUnreachable(
                    f"the Dask scheduler {self._settings.scheduler} does not answer ({error}); "
                    "check the address and the --tls-… files"
                ) from None
        else:
            self._cluster = _local_cluster(self._settings)
            self._client = Client(self._cluster, set_as_default=False)
        self._client.subscribe_topic(PROGRESS_TOPIC, self._progress)

    def close(self) -> None:
        parts: tuple[Any, ...] = (self._client, self._cluster)
        self._client = self._cluster = None
        for part in parts:
            try:
                if part is not None:
                    part.close(timeout=5)
            except Exception:  # what is half gone fails in many ways, and is left behind
                log.exception("a part of the cluster could not be closed")
        self._futures.clear()
        self._events.clear()

    def connected(self) -> bool:
        return self._client is not None and self._client.status == "running"

    def slots(self) -> int:
        """Worker processes that are there, each of which takes one shard at a time."""
        if not self.connected():
            return 0
        assert self._client is not None
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def submit(self, key: str, target: str, request: Any) -> None:
        """Run `target` (`module:function`) with `request` on a worker. `key` is new for every call."""
        assert self._client is not None
        future = self._client.submit(
            execute, target, key, request, key=key, pure=False, retries=0, resources=RESOURCES, fifo_timeout="0s"
        )
        self._futures[key] = future
        future.add_done_callback(self._done)

    def release(self, key: str) -> None:
        """Forget a call whose outcome is stored; until then Dask would compute a lost result again."""
        self._places.pop(key, None)
        self._events.pop(key, None)
        if future := self._futures.pop(key, None):
            future.release()

    def cancel(self, key: str) -> None:
        """Ask a running call to stop at its next report."""
        if key not in self._events and self._client is not None:
            self._events[key] = Event(_cancel_name(key), client=self._client)
            self._events[key].set()

    def kill(self, key: str) -> None:
        """kill -9 of the worker process that runs a call: the outcome is `worker_died`, its nanny starts another."""
        place = self._places.get(key)
        if place is not None and self._client is not None:
            address, process = place
            self._client.run(os.kill, process, signal.SIGKILL, workers=[address], nanny=True, on_error="return")

    def _done(self, future: Future) -> None:
        try:
            outcome = _outcome(future)
        except Exception:  # the scheduler went away while it was asked; without an outcome the call would never end
            log.exception("what became of %s cannot be told", future.key)
            outcome = Outcome(future.key, "lost")
        self._on_outcome(outcome)

    def _progress(self, event: tuple[float, dict[str, Any]]) -> None:
        _time, message = event
        self._places[message["key"]] = (message["worker"], message["process"])
        self._on_progress(message["key"], message["done"])


def execute(target: str, key: str, request: Any) -> Any:
    """On a worker: import `target` and call it with the request and a `report` that raises Cancelled."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(request, _Report(key))


class _Report:
    """Sends progress and looks for the cancel flag, at most once per REPORT_INTERVAL."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._worker = get_worker()
        self._cancelled = Event(_cancel_name(key))
        self._last = 0.0
        self(0)

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last < REPORT_INTERVAL:
            return
        self._last = time.monotonic()
        message = {"key": self._key, "done": done, "worker": self._worker.address, "process": os.getpid()}
        self._worker.log_event(PROGRESS_TOPIC, message)
        if self._is_cancelled():
            raise Cancelled("the evaluation was cancelled")

    def _is_cancelled(self) -> bool:
        """A busy machine may not get through to the scheduler in time; the work is not lost over that."""
        try:
            return bool(self._cancelled.is_set())
        except OSError as error:
            log.warning("the scheduler did not say whether %s was cancelled (%s); asking again later", self._key, error)
            return False


def run_worker(settings: Settings, scheduler: str) -> None:
    """Serve an existing scheduler with one supervised worker process until interrupted; reconnects for ever.

    Raises:
        InvalidRequest: not a tls:// address, or a certificate file is missing.
    """
    if not scheduler.startswith("tls://"):
        raise InvalidRequest(f"{scheduler}: the scheduler's address must begin with tls://, e.g. tls://10.0.0.1:8786")
    configure(settings)
    security = security_of(settings)
    asyncio.run(_serve_worker(settings, scheduler, security))


def device_list(devices: str) -> list[str]:
    """The devices of the setting: `all` is every CUDA card, or one CPU worker where there is none."""
    if devices != "all":
        return [device.strip() for device in devices.split(",") if device.strip()]
    return [f"cuda:{index}" for index in range(len(_visible_cards()))] or ["cpu"]


def _visible_cards() -> list[str]:
    """What CUDA_VISIBLE_DEVICES must say for a process to see one card of this process's, in order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    cards = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(cards.iterdir())))] if cards.is_dir() else []


def configure(settings: Settings) -> None:
    """Set Dask up for this process, over whatever the user's own Dask configuration says."""
    threads = str(settings.worker_threads(len(device_list(settings.devices))))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    # Threads that spin while they wait stall for milliseconds at every operation once another process wants the core.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    dask.config.set(
        {
            **DASK_SETTINGS,
            "distributed.scheduler.worker-ttl": f"{settings.worker_ttl}s",
            # The nanny's own default is one thread, which changes speed and the order of summation.
            "distributed.nanny.pre-spawn-environ": environment,
        }
    )


def security_of(settings: Settings) -> Security:
    """The certificates of the settings; InvalidRequest names the option whose file is missing."""
    for option in ("tls_ca", "tls_cert", "tls_key"):
        value = getattr(settings, option)
        flag = "--" + option.replace("_", "-")
        if not value:
            raise InvalidRequest(f"an existing scheduler is reached over TLS only; give {flag} FILE")
        if not Path(value).is_file():
            raise InvalidRequest(f"{flag} {value}: there is no such file")
    pair = {"cert": settings.tls_cert, "key": settings.tls_key}
    roles = {f"tls_{role}_{part}": file for role in ("client", "worker", "scheduler") for part, file in pair.items()}
    return Security(require_encryption=True, tls_ca_file=settings.tls_ca, **roles)


def _local_cluster(settings: Settings) -> SpecCluster:
    security = Security.temporary()
    devices = device_list(settings.devices)
    common = {"security": security, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    workers = {
        index: {"cls": Nanny, "options": {**common, **_nanny_options(settings, device, len(devices))}}
        for index, device in enumerate(devices)
    }
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0, "protocol": "tls://"}}
    return SpecCluster(
        workers=workers, scheduler=scheduler, security=security, silence_logs=logging.ERROR, name="evalsvc"
    )


def worker_environment(settings: Settings, device: str, processes: int) -> dict[str, str]:
    """The variables of a worker process on `device`, one of `processes` that share the machine's cores."""
    threads = str(settings.worker_threads(processes))
    environment = settings.environment() | {"EVALSVC_DEVICE": device, "EVALSVC_THREADS": threads}
    if device.startswith("cuda:"):
        # The process sees its own card only, so nothing of it can end up on another.
        environment |= {"CUDA_VISIBLE_DEVICES": _card(device), "EVALSVC_DEVICE": "cuda:0"}
    return environment


def _nanny_options(settings: Settings, device: str, processes: int) -> dict[str, Any]:
    environment = worker_environment(settings, device, processes)
    return {"nthreads": 1, "resources": RESOURCES, "memory_limit": 0, "env": environment, "silence_logs": logging.ERROR}


def _card(device: str) -> str:
    cards, index = _visible_cards(), device.removeprefix("cuda:")
    if not index.isdigit() or int(index) >= len(cards):
        raise InvalidRequest(f"the device {device!r} is not there; this machine shows {len(cards)} CUDA cards")
    return cards[int(index)]


async def _serve_worker(settings: Settings, scheduler: str, security: Security) -> None:
    options = _nanny_options(settings, settings.device or device_list("all")[0], processes=1)
    while True:
        try:
            async with Nanny(scheduler, security=security, dashboard_address=":0", **options) as nanny:
                log.warning("worker %s serves %s", nanny.worker_address, scheduler)
                await nanny.finished()
            log.warning("the scheduler %s went away; connecting again", scheduler)
        except (TimeoutError, OSError) as error:
            log.warning("the scheduler %s does not answer (%s); trying again", scheduler, error)
        await asyncio.sleep(1)


def _outcome(future: Future) -> Outcome:
    if future.status == "finished":
        try:
            return Outcome(future.key, "result", future.result(timeout=30))
        except Exception:
            # The worker died while it handed over, or what it sent cannot be read. `lost` costs a shard nothing, and
            # the second would be tried for ever.
            log.exception("the result of %s did not arrive", future.key)
            return Outcome(future.key, "worker_died")
    if future.status == "error":
        error = future.exception(timeout=30)
        if isinstance(error, KilledWorker):
            return Outcome(future.key, "worker_died")
        if isinstance(error, Cancelled):
            return Outcome(future.key, "cancelled")
        return Outcome(future.key, "error", f"{type(error).__name__}: {error}")
    return Outcome(future.key, "lost")


def _cancel_name(key: str) -> str:
    return f"cancel/{key}"
