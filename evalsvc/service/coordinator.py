"""The coordinator: dispatches shards from the queue in SQL to the cluster, one per free worker, and stores the results.

The coordinator is a single thread. It wakes on an outcome or on `wake`, and runs a round every TICK seconds. Its own
state can be lost at any time: the database holds what is queued, running and finished, see `ShardQueue`. Each part of
the round is a `RetriedCall`: an exception is logged and the part is retried, while the other parts go on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from evalsvc.cluster.cluster import Cluster, Member, Outcome
from evalsvc.config import Settings
from evalsvc.errors import DatabaseInUse, EvalsvcError
from evalsvc.messages import ShardResult, unpack_result
from evalsvc.service.shard_files import Housekeeping, ShardFiles
from evalsvc.service.shard_queue import InFlightTable, Placement, ShardQueue, may_pass
from evalsvc.service.spooler import Spooler
from evalsvc.store.lock import CoordinatorLock
from evalsvc.store.queue.status import AtWork
from evalsvc.store.session import Store, database_unusable, is_outage
from evalsvc.store.views import LiveTask

log = logging.getLogger(__name__)

RUN_SHARD = "evalsvc.worker.shard:run_packed_shard"
"""Function that runs shards on workers: named, not imported, because this process needs neither tasks nor torch."""

TICK = 0.5
"""Seconds between two checks of cancellations, deadlines and the cluster while no event arrives."""

IDLE_LOOK = 5.0
"""Seconds between two checks of an empty queue; `wake` reports new work."""

LOST_AFTER = 1.0
"""Seconds without a scheduler after which its shards are queued again. Dask itself resubmits nothing."""

LONGEST_WAIT, LONGEST_WAIT_FOR_CLUSTER = 5.0, 30.0
"""Longest back-off of a part of the round that keeps failing, in seconds."""

STALLED_AFTER = 120.0
"""Seconds without a round after which the coordinator counts as dead. A round may wait for the database or the
scheduler, which have shorter limits of their own."""

STOP_PATIENCE = 15.0
"""Seconds beyond the grace period that `stop` waits for a round to end."""

KILL_AGAIN = 2.0
"""Seconds after which a shard that exceeded its deadline and still runs is killed again."""


ClusterFactory: TypeAlias = Callable[[Settings, Callable[[str, int], None], Callable[[Outcome], None]], Cluster]
"""Factory of a cluster, from the settings, a callback for the progress of calls, and a callback for their outcomes."""


class Coordinator:
    """Runs the queue of one store on one cluster. Call `start` and `stop` once each, everything else at any time."""

    def __init__(
        self, store: Store, settings: Settings, lock: CoordinatorLock | None = None, cluster: ClusterFactory = Cluster
    ) -> None:
        """Set up the coordinator. `lock` is that of the store's database, if held already; released at the end."""
        self._settings = settings
        self._unfenced = store
        self._lock = lock or CoordinatorLock(store.url)
        self._displaced = False
        fenced, self._files = self._lock.fence(store), ShardFiles(settings)
        self._queue = ShardQueue(fenced, settings, self._files)
        self._in_flight = InFlightTable()
        self._events: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._cluster = cluster(settings, self._in_flight.note_progress, self._note_outcome)
        self._placement = Placement()
        self._keeping = ThreadPoolExecutor(1, "keeping")
        self._spooler = Spooler(fenced, settings, self.wake)
        self._housekeeping = Housekeeping(fenced, settings, self._files)
        self._unstored: list[Outcome] = []
        self._stirred = threading.Event()
        self._stirred.set()
        self._stopping = threading.Event()
        self._look_around_at = 0.0
        self._idle_until = 0.0
        self._disconnected_since: float | None = -LOST_AFTER
        self._round_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)

    def start(self) -> None:
        """Start and return immediately. The cluster starts in the coordinator's own thread."""
        self._thread.start()

    def drain(self) -> None:
        """Begin to stop: dispatch nothing new, and requeue uncounted what still runs after `grace` seconds."""
        self._stopping.set()
        self.wake()

    def stop(self) -> None:
        """Drain, and wait for the end."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(self._settings.grace + STOP_PATIENCE)
            if self._thread.is_alive():
                log.warning("the coordinator hangs and is abandoned; its shards are retried at the next start")

    def displaced(self) -> bool:
        """Tell whether another process has become the coordinator of this database."""
        return self._displaced

    def draining(self) -> bool:
        return self._stopping.is_set()

    def alive(self) -> bool:
        return self._thread.is_alive() and time.monotonic() - self._round_at < STALLED_AFTER

    def wake(self) -> None:
        """Check the queue now, because something was submitted, cancelled or retried."""
        self._idle_until = 0.0
        self._stirred.set()
        self._events.put(None)

    def live(self) -> Mapping[int, LiveTask]:
        return self._in_flight.live()

    def members(self) -> list[Member]:
        return self._cluster.members()

    def at_work(self) -> Mapping[str, AtWork]:
        return self._in_flight.at_work(self._cluster.place)

    def workers(self) -> int:
        return self._cluster.slots()

    def _run(self) -> None:
        parts = [
            self._part("be the coordinator of the database", self._hold_database),
            store := self._part("store outcomes", self._store_outcomes),
            self._part("requeue orphaned shards", self._requeue_orphans),
            self._part("reach the cluster", self._watch_cluster, LONGEST_WAIT_FOR_CLUSTER),
            self._part("stop cancelled shards", self._stop_unwanted),
            self._part("stop overdue shards", self._stop_overdue),
            self._part("copy and release checkpoints", self._poll_spooler),
            dispatch := self._part("dispatch shards", self._dispatch),
            release := self._part("release results", self._cluster.release_futures),
            self._part("remove unreferenced files", self._housekeeping.run),
        ]
        # All parts would be too many for every shard.
        after_outcomes = [store, dispatch, release]
        stop_by: float | None = None
        while True:
            look_around = self._collect()
            self._round_at = time.monotonic()
            for part in parts if look_around else after_outcomes:
                if not part.attempt() and not self._lock.has_term():
                    break  # the database would refuse the outcomes of the other parts
            if self._stopping.is_set():
                stop_by = stop_by or time.monotonic() + self._settings.grace
                if not self._in_flight.items() or time.monotonic() > stop_by:
                    break
        for name, do in (
            ("requeue running shards", self._abandon),
            ("stop copying", self._spooler.close),
            ("end the cluster", self._cluster.close),
            ("finish writing files", self._keeping.shutdown),
            ("release the database", self._lock.release),
        ):
            self._part(name, do).attempt()

    def _part(self, name: str, do: Callable[[], None], longest_wait: float | None = None) -> RetriedCall:
        def translated(error: Exception) -> Exception:
            return database_unusable(self._unfenced.url, error) if is_outage(error) else error

        return RetriedCall(name, do, LONGEST_WAIT if longest_wait is None else longest_wait, translated)

    def _collect(self) -> bool:
        """Wait for events; return whether a whole round is due: for an event other than an outcome, or after TICK."""
        look_around = False
        wait = max(0.0, self._look_around_at - time.monotonic())
        with suppress(queue.Empty):
            outcome = self._events.get(timeout=wait)
            while True:
                if outcome is None:
                    look_around = True
                else:
                    self._unstored.append(outcome)
                outcome = self._events.get_nowait()
        if look_around := look_around or time.monotonic() >= self._look_around_at:
            self._look_around_at = time.monotonic() + TICK
        return look_around

    def _hold_database(self) -> None:
        if not self._lock.is_held():
            try:
                self._lock.acquire()
            except DatabaseInUse:
                self._displaced = True
                raise
        if not self._lock.has_term():
            self._lock.begin_term(self._unfenced)
            self._displaced = False
            self._queue.may_have_orphans.set()

    def _store_outcomes(self) -> None:
        problem: Exception | None = None
        for outcome in list(self._unstored):
            try:
                self._store_outcome(outcome)
            except Exception as error:  # the outcome is kept and does not block the others
                problem = error
                if may_pass(error):
                    break
            else:
                self._unstored.remove(outcome)
        if problem is not None:
            raise problem

    def _store_outcome(self, outcome: Outcome) -> None:
        if (item := self._in_flight.get(outcome.key)) is None:
            return
        succeeded = self._queue.settle(item, outcome)
        # The outcome may have ended the evaluation, or the last use of a checkpoint.
        if not succeeded or item.assignment.request.stage != "run" or item.cancelled_at is not None:
            self.wake()
        self._in_flight.remove(item, succeeded=succeeded)
        self._cluster.release(outcome.key)

    def _abandon(self) -> None:
        for item in self._in_flight.items():
            self._store_outcome(Outcome(item.assignment.key, "lost"))

    def _requeue_orphans(self) -> None:
        held = {item.assignment.shard_id: item.assignment.attempt for item in self._in_flight.items()}
        if self._queue.requeue_orphans(held):
            self.wake()

    def _watch_cluster(self) -> None:
        if self._cluster.connected():
            self._disconnected_since = None
            return
        self._disconnected_since = self._disconnected_since or time.monotonic()
        if time.monotonic() - self._disconnected_since < LOST_AFTER or self._stopping.is_set():
            return
        if in_flight := self._in_flight.items():
            log.warning("the scheduler went away; its %d shards are queued again", len(in_flight))
        self._abandon()
        self._cluster.close()
        self._cluster.start()

    def _stop_unwanted(self) -> None:
        items = self._in_flight.items()
        unwanted = self._queue.unwanted([item.assignment.shard_id for item in items])
        for item in items:
            if item.assignment.shard_id not in unwanted:
                continue
            if item.cancelled_at is None:
                item.cancelled_at = time.monotonic()
                self._cluster.cancel(item.assignment.key)
            elif time.monotonic() - item.cancelled_at > self._settings.grace:
                item.cancelled_at = time.monotonic()
                self._cluster.kill(item.assignment.key)

    def _stop_overdue(self) -> None:
        for item in self._in_flight.items():
            if item.killed_at is not None and time.monotonic() - item.killed_at < KILL_AGAIN:
                continue
            if not (item.overran or item.is_overdue(self._settings)):
                continue
            if not item.overran:
                log.warning("%s exceeded its deadline and is stopped", item.assignment.key)
            # Repeat the kill: until a shard has begun, its process is unknown.
            item.overran, item.killed_at = True, time.monotonic()
            self._cluster.kill(item.assignment.key)

    def _poll_spooler(self) -> None:
        if not self._stirred.is_set():  # without an event, spooled copies do not change
            return
        self._stirred.clear()
        try:
            self._spooler.poll({item.assignment.checkpoint_id for item in self._in_flight.items()})
        except Exception:
            self._stirred.set()
            raise

    def _dispatch(self) -> None:
        if self._stopping.is_set() or time.monotonic() < self._idle_until:
            return
        free = self._cluster.free()
        while free:
            running = [item.assignment for item in self._in_flight.items()]
            assignment = self._queue.take(self._placement.worker_state(free, running))
            if assignment is None:
                # Set before the queue is checked, so that a `wake` after the check is not lost.
                self._idle_until = time.monotonic() + IDLE_LOOK
                if running or not self._queue.is_empty():
                    self._idle_until = 0.0
                return
            worker = self._placement.choose(free, assignment)
            free.remove(worker)
            self._in_flight.add(assignment)
            try:
                request = replace(assignment.request, service=self._files.service)
                self._cluster.submit(assignment.key, RUN_SHARD, request, worker)
                log.info("%s dispatched: %s", assignment.key, assignment.request.stage)
            except (Exception, CancelledError):  # the client fails in many ways while its scheduler goes away
                log.exception("%s could not be dispatched", assignment.key)
                self._events.put(Outcome(assignment.key, "lost"))

    def _note_outcome(self, outcome: Outcome) -> None:
        if (item := self._in_flight.get(outcome.key)) is None:  # an attempt that was given up
            return
        if outcome.kind == "result":
            try:
                outcome = replace(outcome, value=unpack_result(item.assignment.request, outcome.value))
            except Exception as error:  # anything may come from a worker, and without an outcome its shard never ends
                outcome = Outcome(outcome.key, "error", f"its result cannot be read ({type(error).__name__}: {error})")
        if isinstance(outcome.value, ShardResult) and outcome.value.kept:  # large files, which are written first
            self._keeping.submit(self._keep, outcome)
        else:
            self._events.put(outcome)

    def _keep(self, outcome: Outcome) -> None:
        try:
            self._files.keep_new(outcome.value.kept)
        except Exception as error:  # later evaluations compute the files again
            log.warning("%s: new files are not kept for later evaluations: %s", outcome.key, error)
        self._events.put(outcome)


FIRST_WAIT = 0.5
"""Seconds of back-off after the first failure; doubled after each further failure."""


@dataclass
class RetriedCall:
    """A repeated call. It never raises, and does not block other calls during its back-off."""

    name: str
    do: Callable[[], None]
    longest_wait: float
    translate: Callable[[Exception], Exception] = lambda error: error
    """Converts expected exceptions to an EvalsvcError; others are logged with a traceback."""
    _wait: float = 0.0
    _again_at: float = 0.0

    def attempt(self) -> bool:
        if time.monotonic() < self._again_at:
            return False
        try:
            self.do()
            self._wait = 0.0
            return True
        except (CancelledError, Exception) as failure:  # an event loop that ends raises the first
            error = self.translate(failure) if isinstance(failure, Exception) else failure
        self._wait = min(2 * self._wait or FIRST_WAIT, self.longest_wait)
        self._again_at = time.monotonic() + self._wait
        if isinstance(error, EvalsvcError):
            log.warning("could not %s: %s; retrying in %.1f s", self.name, error, self._wait)
        else:
            log.error("could not %s; retrying in %.1f s", self.name, self._wait, exc_info=error)
        return False
