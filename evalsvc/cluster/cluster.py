"""Remote execution by Dask distributed, for the coordinator.

Dask has no queue of shards: the coordinator submits at most one shard per worker, to a worker that it chooses, so that
a dying worker is blamed for one shard only. The coordinator releases every future as soon as its result is stored, so
that no result is computed again.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from distributed import Client, Event, Future, Scheduler, Security
from distributed.deploy.spec import SpecCluster

from evalsvc.cluster.devices import device_list
from evalsvc.cluster.nanny import (
    DEATH_TOPIC,
    PROGRESS_TOPIC,
    REPLY,
    RESOURCES,
    WorkerNanny,
    cancel_name,
    execute,
    kill_worker,
    nanny_options,
)
from evalsvc.cluster.private import (
    CallEnded,
    KnownWorker,
    call_on,
    connection,
    known_workers,
    own_client,
    packed_bytes,
    remote_client,
)
from evalsvc.cluster.settings import NO_DASHBOARD, WIDGETS_ONLY, configure, private_folder, security_of
from evalsvc.config import Settings
from evalsvc.connection_errors import explain_scheduler
from evalsvc.errors import ServiceUnreachable
from evalsvc.installation import code_digest

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0

ANSWER_TIMEOUT = 10.0
"""Seconds that the scheduler has for an answer, so that a stopped scheduler does not block the coordinator forever."""

SILENT_AFTER = 4.0
"""Seconds without a heartbeat after which a worker gets no new shard, because it may be stopped or disconnected. In a
cluster of hundreds the limit is longer, because Dask sets the heartbeat interval to n / 200 + 1 s."""

STRANDED_AFTER = 1.0
"""Seconds after which a call is lost if its worker is gone and Dask does not report its end."""

ROSTER_AGE = 0.5
"""Seconds that the scheduler's list of workers is used to choose a free worker, because a request takes longer than
many a shard. With more than 50 workers the list is used longer. A shard that is sent to a worker which has left is lost
and queued again."""

OTHER_CODE = (
    "it runs another evalsvc (code {code}, the service has {own}); install the same on both, and restart the older one"
)

SCHEDULER_TOPIC = "scheduler"
"""Dask's own topic, which reports workers that were silent for too long."""


@dataclass(frozen=True)
class Member:
    address: str
    name: str
    host: str
    refuses: str
    """Why the worker gets no shards, as a clause; empty if it gets some."""


class Cluster:
    """The worker processes and the connection to them. Callbacks run on Dask's threads and must return immediately."""

    def __init__(
        self, settings: Settings, on_progress: Callable[[str, int], None], on_outcome: Callable[[Outcome], None]
    ) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._on_outcome = on_outcome
        # A scheduler returns the same result for two calls with the same name, even from two services.
        self._suffix = f"@{uuid.uuid4().hex}"
        self._cluster: SpecCluster | None = None
        self._client: Client | None = None
        self._connection: Any = None
        self._forget()

    def _forget(self) -> None:
        self._futures: dict[str, Future] = {}
        self._released: list[Future] = []
        self._events: dict[str, Event] = {}
        self._places: dict[str, str] = {}
        self._sent: dict[str, str] = {}
        self._heard: dict[str, tuple[float, float]] = {}
        self._missing: dict[str, float] = {}
        self._refused: set[str] = set()
        self._roster: Mapping[str, KnownWorker] = {}
        self._roster_until = 0.0
        self._deaths = Deaths(self._on_outcome)

    def start(self) -> None:
        """Start a cluster of this machine's devices, or connect to the scheduler in the settings, until it is up."""
        scratch = private_folder(self._settings.data_path / "dask")
        configure(self._settings, scratch, len(device_list(self._settings.devices)))
        if self._settings.scheduler:
            security = security_of(self._settings)
            try:
                self._client = remote_client(self._settings.scheduler, security, CONNECT_TIMEOUT)
            except Exception as error:  # Dask raises many kinds of errors
                scheduler = self._settings.scheduler
                raise ServiceUnreachable(
                    f"the Dask scheduler {scheduler} does not answer: {explain_scheduler(error, scheduler)}"
                ) from None
        else:
            self._cluster = _local_cluster(self._settings)
            self._client = own_client(self._cluster)
        self._connection = connection(self._client)
        self._subscribe(PROGRESS_TOPIC, {"key": str, "done": int, "worker": str}, self._progress)
        death = {"worker": str, "cause": str}
        self._subscribe(DEATH_TOPIC, death, lambda told: self._deaths.explain(told["worker"], told["cause"]))
        self._subscribe(SCHEDULER_TOPIC, {"action": str, "workers": Sequence}, self._silence)

    def _subscribe(self, topic: str, fields: Mapping[str, type], handle: Callable[[Any], None]) -> None:
        """Call `handle` with each message of a topic that has these fields; no code of evalsvc sends others."""

        def on_event(event: tuple[float, object]) -> None:
            _time, message = event
            if isinstance(message, dict) and all(isinstance(message.get(name), kind) for name, kind in fields.items()):
                handle(message)

        assert self._client is not None
        self._client.subscribe_topic(topic, on_event)

    def close(self) -> None:
        client, cluster = self._client, self._cluster
        self._client = self._cluster = self._connection = None
        self._forget()
        for part in (client, cluster):
            try:
                if part is not None:
                    part.close(timeout=5)
            except Exception:  # a half-closed cluster fails in many ways, and is abandoned
                log.exception("a part of the cluster could not be closed")

    def connected(self) -> bool:
        """Return whether the scheduler that `start` connected to still answers."""
        client = self._client
        # Dask's client reconnects by itself to a new scheduler, which knows neither the calls nor their topics.
        return client is not None and client.status == "running" and connection(client) is self._connection

    def free(self) -> list[str]:
        """Return the addresses of workers that accept shards and run none; report calls of lost workers as lost."""
        if time.monotonic() > self._roster_until or not self.connected():
            asked_at = time.monotonic()
            known = self._known_workers()
            if known is None:
                return []
            self._watch(known)
            self._roster, self._roster_until = known, asked_at + ROSTER_AGE * max(1.0, len(known) / 50)
        known = self._roster
        busy = set(self._sent.values())
        return [
            address
            for address, worker in known.items()
            if address not in busy and not self._refusal(address, worker, len(known))
        ]

    def slots(self) -> int:
        return sum(not member.refuses for member in self.members())

    def members(self) -> list[Member]:
        known = self._known_workers() or {}
        return [
            Member(address, worker.name, worker.host, self._refusal(address, worker, len(known)))
            for address, worker in known.items()
        ]

    def place(self, key: str) -> str | None:
        return self._sent.get(key)

    def submit(self, key: str, target: str, request: object, worker: str | None = None) -> None:
        """Run `target` (`module:function`), which returns bytes, with `request` on a worker, or on any. `key` must be
        new for every call. A worker that is gone, or drains, before the call begins makes it `lost`."""
        assert self._client is not None
        name = key + self._suffix
        options: dict[str, Any] = {"pure": False, "retries": 0, "resources": RESOURCES, "fifo_timeout": "0s"}
        if worker is not None:
            self._sent[key] = worker
            options |= {"workers": [worker], "allow_other_workers": False}
        self._futures[key] = future = self._client.submit(execute, target, name, request, key=name, **options)
        future.add_done_callback(self._done)

    def release(self, key: str) -> None:
        """Forget a call whose outcome is stored, so that its worker is free. `release_futures` tells Dask."""
        for known in (self._places, self._sent, self._events, self._missing):
            known.pop(key, None)
        if future := self._futures.pop(key, None):
            self._released.append(future)

    def release_futures(self) -> None:
        """Drop the results of released calls. This keeps Dask busy for as long as dispatching the next call takes."""
        while self._released:
            self._released.pop().release()

    def cancel(self, key: str) -> None:
        """Ask a running call to stop at its next report."""
        if key not in self._events and self._client is not None:
            self._events[key] = Event(cancel_name(key + self._suffix), client=self._client)
            self._events[key].set()

    def kill(self, key: str) -> None:
        """Send SIGKILL to the worker process that runs a call. The outcome is `worker_died`."""
        address = self._sent.get(key) or self._places.get(key)
        if address is not None and self._client is not None:
            call_on(self._client, address, kill_worker, nanny=True)

    def _known_workers(self) -> Mapping[str, KnownWorker] | None:
        client = self._client
        if client is None or not self.connected():
            return None
        try:
            return known_workers(client, ANSWER_TIMEOUT)
        except Exception as error:  # a scheduler that goes away raises many kinds of errors
            log.warning("the scheduler did not list its workers (%s: %s)", type(error).__name__, error)
            return None

    def _refusal(self, address: str, worker: KnownWorker, workers: int) -> str:
        # The scheduler's clock differs, so its times of heartbeats are only compared with each other.
        now = time.monotonic()
        last, since = self._heard.get(address, (None, now))
        if worker.last_seen != last:
            last, since = worker.last_seen, now
            self._heard[address] = (last, since)
        if worker.code != code_digest():
            return OTHER_CODE.format(code=worker.code[:12] if worker.code.isalnum() else "unknown", own=code_digest())
        if worker.is_draining or address in self._refused:
            return "it drains"
        return "" if now - since < SILENT_AFTER + workers / 50 else "it sends no heartbeat"

    def _watch(self, known: Mapping[str, KnownWorker]) -> None:
        """Report calls as lost whose worker is gone. They would wait forever: no other worker may run them."""
        for address in set(self._heard) - set(known):
            self._heard.pop(address, None)
        now = time.monotonic()
        for key, address in list(self._sent.items()):
            if address in known:
                self._missing.pop(key, None)
            elif now - self._missing.setdefault(key, now) > STRANDED_AFTER and (future := self._futures.get(key)):
                log.warning("%s is lost: its worker %s is gone", key, address)
                self._missing[key] = float("inf")
                future.cancel()

    def _done(self, future: Future) -> None:
        key = str(future.key).removesuffix(self._suffix)
        try:
            outcome = outcome_of(key, future)
        except Exception:  # the scheduler may have gone away; without an outcome the call would never end
            log.exception("the outcome of %s is unknown", key)
            outcome = Outcome(key, "lost")
        if outcome.kind not in ("result", "cancelled"):
            self._roster_until = 0.0
        address = self._sent.get(outcome.key)
        if outcome.kind == "worker_died" and address is not None:
            self._deaths.report(address, outcome, begun=outcome.key in self._places)
            return
        if outcome.kind == "refused":
            self._refused |= set() if address is None else {address}
            outcome = replace(outcome, kind="lost")
        self._on_outcome(outcome)

    def _silence(self, message: Any) -> None:
        if message["action"] == "worker-ttl-timed-out":
            for address in message["workers"]:
                self._deaths.explain(str(address), SILENT.format(ttl=self._settings.worker_ttl))

    def _progress(self, message: Any) -> None:
        if message["key"].endswith(self._suffix):  # a call of this service
            key = message["key"].removesuffix(self._suffix)
            self._places[key] = message["worker"]
            self._on_progress(key, message["done"])


def _local_cluster(settings: Settings) -> SpecCluster:
    security = Security.temporary()
    devices = device_list(settings.devices)
    common = {"security": security, "host": "127.0.0.1", **NO_DASHBOARD}
    options = [nanny_options(settings, device, len(devices), drains=False) | common for device in devices]
    workers = {
        f"{device}#{index}": {"cls": WorkerNanny, "options": options[index]} for index, device in enumerate(devices)
    }
    # The client connects within the scheduler's process: over encrypted sockets a shard takes a seventh longer.
    listeners = {"protocol": ["tls://", "inproc://"], "host": ["127.0.0.1", None], "port": [0, None]}
    scheduler = {"cls": Scheduler, "options": {**common, **listeners}}
    quiet = {"silence_logs": logging.ERROR, "scheduler_sync_interval": WIDGETS_ONLY}
    return SpecCluster(workers=workers, scheduler=scheduler, security=security, name="evalsvc", **quiet)


CAUSE_WAIT = 0.5
"""Seconds to wait for the cause of a worker's death, which the nanny sends separately."""

CAUSES, CAUSE_CHARACTERS = 10_000, 500
"""Limits of the causes that are kept, and of each: any worker can send causes, for any address."""

SILENT = "it sent no heartbeat for EVALSVC_WORKER_TTL, {ttl:g} s: stopped, disconnected, or too busy"

OutcomeKind: TypeAlias = Literal["result", "error", "cancelled", "worker_died", "lost", "refused"]


@dataclass(frozen=True)
class Outcome:
    key: str
    kind: OutcomeKind
    """Kind of end. `error`: the call raised, or could not be imported; `cancelled`: the call stopped on request;
    `lost`: the scheduler went away, or the worker did before the call began; `refused`, never seen outside the cluster:
    the worker drains."""
    value: Any = None
    """Bytes that the call returned, or message of the error."""
    cause: str = field(default="", compare=False)
    """Cause of the worker's death; empty if it is unknown."""


def outcome_of(key: str, future: Future) -> Outcome:
    if future.status == "finished":
        try:
            reply = REPLY.unpack(packed_bytes(future.result(timeout=30)))
        except CancelledError:
            return Outcome(key, "lost")
        except Exception:
            # The worker died while it sent the result, or the result cannot be read. `lost` would not count as an
            # attempt, so an unreadable result would be tried forever.
            log.exception("the result of %s did not arrive", key)
            return Outcome(key, "worker_died")
        return Outcome(key, reply.kind, {"result": reply.content, "error": reply.message}.get(reply.kind))
    if future.status == "error":
        error = future.exception(timeout=30)
        if isinstance(error, CallEnded) and error.worker_died:
            return Outcome(key, "worker_died")
        return Outcome(key, "error", f"{error}; check that it has the version of evalsvc that the service has")
    return Outcome(key, "lost")


class Deaths:
    """Joins the news of a worker's death with its cause, which arrive separately and in any order."""

    def __init__(self, on_outcome: Callable[[Outcome], None]) -> None:
        self._on_outcome = on_outcome
        self._lock = threading.Lock()
        self._causes: dict[str, str] = {}
        self._waiting: dict[str, tuple[Outcome, bool]] = {}

    def report(self, address: str, outcome: Outcome, begun: bool) -> None:
        with self._lock:
            self._waiting[address] = (outcome, begun)
            known = address in self._causes
        if known:
            self._tell(address)
        else:
            timer = threading.Timer(CAUSE_WAIT, self._tell, (address,))
            timer.daemon = True
            timer.start()

    def explain(self, address: str, cause: str) -> None:
        with self._lock:
            self._causes.setdefault(address, cause[:CAUSE_CHARACTERS])
            if len(self._causes) > CAUSES:
                del self._causes[next(iter(self._causes))]
        self._tell(address)

    def _tell(self, address: str) -> None:
        with self._lock:
            outcome, begun = self._waiting.pop(address, (None, False))
            cause = self._causes.get(address, "")
        if outcome is None:
            return
        if not begun and cause.startswith(SILENT.partition("{")[0]):
            # The call went to a worker that was already stopped, so the attempt does not count.
            outcome = replace(outcome, kind="lost")
        self._on_outcome(replace(outcome, cause=cause))
