"""Remote execution by Dask distributed, as the coordinator sees it.

Dask is given no queue: the coordinator submits at most one shard per worker, to a worker that it chooses, so that a
dying worker can be blamed for one shard only, and releases every future as soon as its result is stored, so that no
result is ever computed again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from distributed import Client, Event, Future, Scheduler, Security
from distributed.deploy.spec import SpecCluster

from evalsvc.cluster.devices import device_list
from evalsvc.cluster.nanny import (
    DEATH_TOPIC,
    PROGRESS_TOPIC,
    RESOURCES,
    Progress,
    WorkerNanny,
    cancel_name,
    execute,
    kill_worker,
    nanny_options,
)
from evalsvc.cluster.outcomes import SILENT, Deaths, Outcome, outcome_of
from evalsvc.cluster.private import KnownWorker, connection, known_workers, own_client
from evalsvc.cluster.questions import QUESTION_TOPIC, Answering
from evalsvc.cluster.settings import NO_DASHBOARD, WIDGETS_ONLY, configure, private_folder, security_of
from evalsvc.cluster.unreachable import explain_scheduler
from evalsvc.config import Settings
from evalsvc.errors import ServiceUnreachable
from evalsvc.files.served import ServedFiles

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0

ANSWER_TIMEOUT = 10.0
"""Seconds that the scheduler has for an answer; one that was stopped would hold up the coordinator for ever."""

SILENT_AFTER = 4.0
"""Seconds without a heartbeat after which a worker gets no new shard: it may be stopped, or cut off. Workers of a
cluster of hundreds have longer intervals, which Dask grows as n / 200 + 1 s."""

STRANDED_AFTER = 1.0
"""Seconds after which a call is lost whose worker is not there any more, and of which Dask says nothing."""

ROSTER_AGE = 0.5
"""Seconds that what the scheduler said of its workers is good for choosing one that is free: asking takes longer than
many a shard, and the longer the more there are: with more than 50 of them it is asked less often. What is handed to one
that went away meanwhile is lost, and queued again."""

SCHEDULER_TOPIC = "scheduler"
"""Dask's own: says which workers were silent for too long."""


class SchedulerEvent(TypedDict, total=False):
    """A message of SCHEDULER_TOPIC, whose other keys depend on the action."""

    action: str
    workers: Sequence[str]


@dataclass(frozen=True)
class Member:
    """A worker process."""

    address: str
    name: str
    """Of the service's own ones, its device and a number."""
    host: str
    takes_shards: bool
    """False: it drains, or has fallen silent."""


class Cluster:
    """Worker processes and the way to them. Callbacks arrive on Dask's threads and must return at once."""

    def __init__(
        self, settings: Settings, on_progress: Callable[[str, int], None], on_outcome: Callable[[Outcome], None]
    ) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._on_outcome = on_outcome
        # A scheduler gives two calls of one name one result, though they be those of two services.
        self._suffix = f"@{uuid.uuid4().hex}"
        self._cluster: SpecCluster | None = None
        self._client: Client | None = None
        self._connection: Any = None
        self._answering: Answering | None = None
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
        """Start a cluster of this machine's devices, or connect to the scheduler of the settings; blocks.

        Raises:
            ServiceUnreachable: the scheduler does not answer.
            InvalidRequest: a device or a certificate file of the settings is not there.
            DataDirectoryUnusable: Dask's folder in the data folder cannot be made.
        """
        scratch = private_folder(self._settings.scratch_path)
        configure(self._settings, scratch, len(device_list(self._settings.devices)))
        if self._settings.scheduler:
            security = security_of(self._settings)
            try:
                self._client = Client(
                    self._settings.scheduler, security=security, timeout=CONNECT_TIMEOUT, set_as_default=False
                )
            except Exception as error:  # Dask's ways not to connect are many
                scheduler = self._settings.scheduler
                raise ServiceUnreachable(
                    f"the Dask scheduler {scheduler} does not answer: {explain_scheduler(error, scheduler)}"
                ) from None
        else:
            self._cluster = _local_cluster(self._settings)
            self._client = own_client(self._cluster)
        self._connection = connection(self._client)
        self._client.subscribe_topic(PROGRESS_TOPIC, self._progress)
        self._client.subscribe_topic(DEATH_TOPIC, self._death)
        self._client.subscribe_topic(SCHEDULER_TOPIC, self._silence)
        self._answering = Answering(self._client, ServedFiles(self._settings.data_path))
        self._client.subscribe_topic(QUESTION_TOPIC, self._question)

    def close(self) -> None:
        client, cluster, answering = self._client, self._cluster, self._answering
        self._client = self._cluster = self._connection = self._answering = None
        self._forget()
        if answering is not None:
            answering.close()
        for part in (client, cluster):
            try:
                if part is not None:
                    part.close(timeout=5)
            except Exception:  # what is half gone fails in many ways, and is left behind
                log.exception("a part of the cluster could not be closed")

    def connected(self) -> bool:
        """Whether the scheduler is there that `start` found.

        Dask's client connects to a new one by itself, but that one knows nothing of the calls, nor that their progress
        is wanted: it takes another `start`.
        """
        client = self._client
        return client is not None and client.status == "running" and connection(client) is self._connection

    def workers(self) -> list[str]:
        """Addresses of the worker processes that would take a shard: none that drains or has fallen silent."""
        known = self._known_workers() or {}
        return [address for address, worker in known.items() if self._takes(address, worker, len(known))]

    def free(self) -> list[str]:
        """Those of them that run nothing of what was submitted. Gives up calls whose worker is gone, too."""
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
            if address not in busy and self._takes(address, worker, len(known))
        ]

    def slots(self) -> int:
        """How many there are, each of which takes one shard at a time."""
        return len(self.workers())

    def members(self) -> list[Member]:
        """The worker processes that are there, those that take nothing too."""
        known = self._known_workers() or {}
        return [
            Member(address, worker.name, worker.host, self._takes(address, worker, len(known)))
            for address, worker in known.items()
        ]

    def place(self, key: str) -> str | None:
        """The address of the worker that a call was sent to; None where it is not known."""
        return self._sent.get(key)

    def submit(self, key: str, target: str, request: object, worker: str | None = None) -> None:
        """Run `target` (`module:function`) with `request` on the worker at an address, or on any.

        `key` is new for every call. The outcome is `lost` where that worker is gone, or drains, before it has begun.
        """
        assert self._client is not None
        name = key + self._suffix
        place = {} if worker is None else {"workers": [worker], "allow_other_workers": False}
        if worker is not None:
            self._sent[key] = worker
        future = self._client.submit(
            execute,
            target,
            name,
            request,
            key=name,
            pure=False,
            retries=0,
            resources=RESOURCES,
            fifo_timeout="0s",
            **place,
        )
        self._futures[key] = future
        future.add_done_callback(self._done)

    def release(self, key: str) -> None:
        """Forget a call whose outcome is stored, so that its worker is free; Dask is told by `release_futures`."""
        for known in (self._places, self._sent, self._events, self._missing):
            known.pop(key, None)
        if future := self._futures.pop(key, None):
            self._released.append(future)

    def release_futures(self) -> None:
        """Drop the results of what was released; until then Dask would compute a lost one again.

        For itself, since it keeps Dask busy for as long as dispatching the next call takes.
        """
        while self._released:
            self._released.pop().release()

    def cancel(self, key: str) -> None:
        """Ask a running call to stop at its next report."""
        if key not in self._events and self._client is not None:
            self._events[key] = Event(cancel_name(key + self._suffix), client=self._client)
            self._events[key].set()

    def kill(self, key: str) -> None:
        """kill -9 of the worker process that runs a call: the outcome is `worker_died`, its nanny starts another."""
        address = self._sent.get(key) or self._places.get(key)
        if address is not None and self._client is not None:
            self._client.run(kill_worker, workers=[address], nanny=True, on_error="return")

    def _known_workers(self) -> Mapping[str, KnownWorker] | None:
        """All that the scheduler knows; None where it does not say."""
        client = self._client
        if client is None or not self.connected():
            return None
        try:
            return known_workers(client, ANSWER_TIMEOUT)
        except Exception as error:  # it goes away in many ways
            log.warning("the scheduler did not say which workers there are (%s: %s)", type(error).__name__, error)
            return None

    def _takes(self, address: str, worker: KnownWorker, workers: int) -> bool:
        """The scheduler's clock is another one, so that its time of a heartbeat says no more than that it is new."""
        now = time.monotonic()
        last, since = self._heard.get(address, (None, now))
        if worker.last_seen != last:
            last, since = worker.last_seen, now
            self._heard[address] = (last, since)
        drains = worker.is_draining or address in self._refused
        return not drains and now - since < SILENT_AFTER + workers / 50

    def _watch(self, known: Mapping[str, KnownWorker]) -> None:
        """Give up calls whose worker left before Dask had sent them there, or before their result was fetched: they
        would wait for ever, since no other worker may take them."""
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
        except Exception:  # the scheduler went away while it was asked; without an outcome the call would never end
            log.exception("what became of %s cannot be told", key)
            outcome = Outcome(key, "lost")
        if outcome.kind not in ("result", "cancelled"):
            self._roster_until = 0.0
        address = self._sent.get(outcome.key)
        if outcome.kind != "worker_died" or address is None:
            if outcome.kind == "refused" and address is not None:
                self._refused.add(address)
            self._on_outcome(replace(outcome, kind="lost") if outcome.kind == "refused" else outcome)
        else:
            self._deaths.report(address, outcome, begun=outcome.key in self._places)

    def _death(self, event: tuple[float, Mapping[str, str]]) -> None:
        _time, message = event
        self._deaths.explain(message["worker"], message["cause"])

    def _silence(self, event: tuple[float, SchedulerEvent]) -> None:
        _time, message = event
        if message.get("action") == "worker-ttl-timed-out":
            for address in message["workers"]:
                self._deaths.explain(address, SILENT.format(ttl=self._settings.worker_ttl))

    def _progress(self, event: tuple[float, Progress]) -> None:
        _time, message = event
        if (key := self._own(message["key"])) is not None:
            self._places[key] = message["worker"]
            self._on_progress(key, message["done"])

    def _question(self, event: tuple[float, dict[str, Any]]) -> None:
        _time, message = event
        if self._own(message["key"]) is not None and self._answering is not None:
            self._answering.answer(message)

    def _own(self, name: str) -> str | None:
        """The key of a call of this service; None for one of another service on the same scheduler."""
        return name.removesuffix(self._suffix) if name.endswith(self._suffix) else None


def _local_cluster(settings: Settings) -> SpecCluster:
    security = Security.temporary()
    devices = device_list(settings.devices)
    common = {"security": security, "host": "127.0.0.1", **NO_DASHBOARD}
    workers = {
        f"{device}#{index}": {
            "cls": WorkerNanny,
            "options": nanny_options(settings, device, len(devices), drains=False) | common,
        }
        for index, device in enumerate(devices)
    }
    # The client is in the scheduler's process: by sockets and encrypted, a shard takes a seventh longer.
    ways = {"protocol": ["tls://", "inproc://"], "host": ["127.0.0.1", None], "port": [0, None]}
    scheduler = {"cls": Scheduler, "options": {**common, **ways}}
    return SpecCluster(
        workers=workers,
        scheduler=scheduler,
        security=security,
        silence_logs=logging.ERROR,
        name="evalsvc",
        scheduler_sync_interval=WIDGETS_ONLY,
    )
