"""The coordinator: dispatches shards from the queue in SQL to the cluster, one per free worker, and stores the results.

The coordinator is a single thread. It wakes on an outcome or on `wake`, and runs a round every TICK seconds. Its own
state can be lost at any time: the database holds what is queued, running and finished, and a result is stored only from
the shard's current attempt. Each part of the round is a `RetriedCall`: an exception is logged and the part is retried,
while the other parts go on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias

from sqlalchemy.orm import Session

from evalsvc.cluster.cluster import Cluster, Member
from evalsvc.cluster.outcomes import Outcome
from evalsvc.config import Settings
from evalsvc.errors import Cancelled, DatabaseInUse, InternalError
from evalsvc.files.artifacts import naming
from evalsvc.files.uploads import SWEEP_EVERY, Uploads
from evalsvc.messages import ShardError, ShardResult, unpack_result
from evalsvc.service.attempt_errors import deadline_exceeded, output_lost, worker_died
from evalsvc.service.in_flight import AtWork, InFlight, Rate
from evalsvc.service.placement import Placement
from evalsvc.service.pruner import PRUNE_EVERY, prune
from evalsvc.service.retried_call import RetriedCall
from evalsvc.service.shard_files import ShardFiles
from evalsvc.service.spooler import Spooler
from evalsvc.store.lock import CoordinatorLock
from evalsvc.store.queue import shards
from evalsvc.store.queue.shards import Assignment
from evalsvc.store.session import Store, database_unusable, is_outage
from evalsvc.store.views import LiveTask

log = logging.getLogger(__name__)

RUN_SHARD = "evalsvc.worker.shard:run_packed_shard"
"""Function that runs shards on workers: named, not imported, because this process needs neither tasks nor torch."""

TICK = 0.5
"""Seconds between two checks of cancellations, deadlines and the cluster while no event arrives."""

STORE, REACH, DISPATCH, RELEASE = "store outcomes", "reach the cluster", "dispatch shards", "release results"

AFTER_OUTCOMES = (STORE, DISPATCH, RELEASE)
"""Parts of a round that run if only outcomes have arrived, because all parts would be too many for every shard."""

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
        """Set up the coordinator without starting it.

        Args:
            lock: the lock of the store's database, if it is held already; released at the end.
            cluster: factory of the cluster that shards run on.
        """
        self._database_lock = lock or CoordinatorLock(store.url)
        self._displaced = False
        self._store = self._database_lock.fence(store)
        self._unfenced = store
        self._settings = settings
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._cluster = cluster(settings, self._note_progress, self._note_outcome)
        self._placement = Placement()
        self._files = ShardFiles(settings)
        self._keeping = ThreadPoolExecutor(1, "keeping")
        self._spooler = Spooler(self._store, settings, self.wake)
        self._lock = threading.Lock()
        self._in_flight: dict[str, InFlight] = {}
        self._rates: dict[int, Rate] = {}
        self._unstored: list[Outcome] = []
        self._stirred = threading.Event()
        self._stirred.set()
        self._may_have_orphans = threading.Event()
        self._may_have_orphans.set()
        self._swept = False
        self._prune_at = time.monotonic() + PRUNE_EVERY
        self._sweep_uploads_at = 0.0
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
        """Dispatch nothing new, give running shards `grace` seconds to finish, and stop; return immediately.

        Shards that still run then are queued again, and their attempt does not count.
        """
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
        """Return whether another process has become the coordinator of this database."""
        return self._displaced

    def draining(self) -> bool:
        return self._stopping.is_set()

    def alive(self) -> bool:
        """Return whether the coordinator completes its rounds."""
        return self._thread.is_alive() and time.monotonic() - self._round_at < STALLED_AFTER

    def wake(self) -> None:
        """Check the queue now, because something was submitted, cancelled or retried."""
        self._idle_until = 0.0
        self._stirred.set()
        self._outcomes.put(None)

    def live(self) -> Mapping[int, LiveTask]:
        """Return the progress of running tasks, by task id."""
        now = time.monotonic()
        with self._lock:
            done: dict[int, int] = {}
            for item in self._in_flight.values():
                if item.assignment.request.stage == "run":
                    done[item.assignment.task_id] = done.get(item.assignment.task_id, 0) + item.done
            rates = {task: (rate.finished, now - rate.started) for task, rate in self._rates.items()}
        live = {}
        for task, units in done.items():
            finished, seconds = rates.get(task, (0, 0.0))
            live[task] = LiveTask(units, (finished + units) / seconds if seconds > 0 and finished + units else None)
        return live

    def members(self) -> list[Member]:
        """Return all worker processes."""
        return self._cluster.members()

    def at_work(self) -> Mapping[str, AtWork]:
        """Return running shards, by the address of their worker."""
        moment = time.monotonic()
        with self._lock:
            items = [(key, item.assignment, item.started) for key, item in self._in_flight.items()]
        return {
            address: AtWork(assignment.task_id, assignment.request.stage, round(moment - started, 1))
            for key, assignment, started in items
            if (address := self._cluster.place(key)) is not None
        }

    def workers(self) -> int:
        """Return the number of live worker processes."""
        return self._cluster.slots()

    def _run(self) -> None:
        calls = self._round()
        stop_by: float | None = None
        while True:
            look_around = self._collect()
            self._round_at = time.monotonic()
            for call in calls.values() if look_around else [calls[name] for name in AFTER_OUTCOMES]:
                if not call.attempt() and not self._database_lock.has_term():
                    break  # the database would refuse the outcomes of the other parts
            if self._stopping.is_set():
                stop_by = stop_by or time.monotonic() + self._settings.grace
                if not self._in_flight or time.monotonic() > stop_by:
                    break
        for end in self._shutdown():
            end.attempt()

    def _round(self) -> dict[str, RetriedCall]:
        """Return the parts of a round by name, in order."""
        parts = {
            "be the coordinator of the database": self._hold_database,
            STORE: self._store_outcomes,
            "requeue orphaned shards": self._requeue_orphans,
            REACH: self._watch_cluster,
            "stop cancelled shards": self._stop_unwanted,
            "stop overdue shards": self._stop_overdue,
            "copy and release checkpoints": self._poll_spooler,
            DISPATCH: self._dispatch,
            RELEASE: self._cluster.release_futures,
            "remove unreferenced files": self._sweep,
            "prune artifacts": self._prune,
            "remove uploads that have expired": self._sweep_uploads,
        }
        longest_waits = {REACH: LONGEST_WAIT_FOR_CLUSTER}
        return {
            name: RetriedCall(name, do, longest_waits.get(name, LONGEST_WAIT), self._translate)
            for name, do in parts.items()
        }

    def _shutdown(self) -> list[RetriedCall]:
        last = {
            "requeue running shards": self._abandon,
            "stop copying": self._spooler.close,
            "end the cluster": self._cluster.close,
            "finish writing files": self._keeping.shutdown,
            "release the database": self._database_lock.release,
        }
        return [RetriedCall(name, do, LONGEST_WAIT, self._translate) for name, do in last.items()]

    def _translate(self, error: Exception) -> Exception:
        return database_unusable(self._store.url, error) if is_outage(error) else error

    def _collect(self) -> bool:
        """Wait at most TICK for an event. Return whether a whole round is due: for an event other than an outcome, or
        after TICK."""
        look_around = False
        wait = max(0.0, self._look_around_at - time.monotonic())
        try:
            outcome = self._outcomes.get(timeout=wait)
            while True:
                if outcome is None:
                    look_around = True
                else:
                    self._unstored.append(outcome)
                outcome = self._outcomes.get_nowait()
        except queue.Empty:
            pass
        if look_around or time.monotonic() >= self._look_around_at:
            self._look_around_at = time.monotonic() + TICK
            return True
        return False

    def _hold_database(self) -> None:
        """Acquire the lock, and reacquire it if it was lost, unless another process holds it."""
        lock = self._database_lock
        if not lock.is_held():
            try:
                lock.acquire()
            except DatabaseInUse:
                self._displaced = True
                raise
        if not lock.has_term():
            lock.begin_term(self._unfenced)
            self._displaced = False
            self._may_have_orphans.set()

    def _store_outcomes(self) -> None:
        """Store outcomes. An outcome that cannot be stored now is kept and does not block the others."""
        problem: Exception | None = None
        for outcome in list(self._unstored):
            try:
                self._store_outcome(outcome)
            except Exception as error:
                problem = error
                if _may_pass(error):
                    break
            else:
                self._unstored.remove(outcome)
        if problem is not None:
            raise problem

    def _abandon(self) -> None:
        for item in list(self._in_flight.values()):
            self._store_outcome(Outcome(item.assignment.key, "lost"))

    def _poll_spooler(self) -> None:
        """Poll the spooler after an event; spooled copies do not change otherwise."""
        if not self._stirred.is_set():
            return
        self._stirred.clear()
        try:
            self._spooler.poll({item.assignment.checkpoint_id for item in self._in_flight.values()})
        except Exception:
            self._stirred.set()
            raise

    def _dispatch(self) -> None:
        if self._stopping.is_set():
            return
        if time.monotonic() < self._idle_until:
            return
        free = self._cluster.free()
        while free:
            assignment = self._take(free)
            if assignment is None:
                # Set before the queue is checked, so that a `wake` after the check is not lost.
                self._idle_until = time.monotonic() + IDLE_LOOK
                if self._in_flight or self._is_queued():
                    self._idle_until = 0.0
                return
            worker = self._placement.choose(free, assignment)
            free.remove(worker)
            with self._lock:
                self._in_flight[assignment.key] = InFlight(assignment)
                if assignment.request.stage == "run":
                    self._rates.setdefault(assignment.task_id, Rate())
            try:
                request = replace(assignment.request, service=self._files.service)
                self._cluster.submit(assignment.key, RUN_SHARD, request, worker)
                log.info("%s dispatched: %s", assignment.key, assignment.request.stage)
            except (Exception, CancelledError):  # the client fails in many ways while its scheduler goes away
                log.exception("%s could not be dispatched", assignment.key)
                self._outcomes.put(Outcome(assignment.key, "lost"))

    def _is_queued(self) -> bool:
        with self._store.reading() as session:
            return shards.is_queued(session)

    def _take(self, free: Sequence[str]) -> Assignment | None:
        worker_state = self._placement.worker_state(free, (item.assignment for item in self._in_flight.values()))
        try:
            with self._store.transaction() as session:
                return shards.take(session, self._spooler.path, worker_state)
        except Exception:
            # The database may have committed although its answer was lost. Then no worker has the running shard.
            self._may_have_orphans.set()
            raise

    def _store_outcome(self, outcome: Outcome) -> None:
        item = self._in_flight.get(outcome.key)
        if item is None:
            return
        if isinstance(outcome.value, ShardResult) and outcome.value.lost:
            item.lost, outcome = list(outcome.value.lost), Outcome(outcome.key, "lost")
            log.warning("%s cannot read outputs of other shards, which are rerun: %s", outcome.key, item.lost)
        try:
            with naming:
                if outcome.kind == "result":
                    outcome = replace(outcome, value=self._files.keep(item.assignment, outcome.value))
                with self._store.transaction() as session:
                    stored = self._settle(session, item, outcome)
        except Exception as error:
            if _may_pass(error):
                raise  # the outcome is stored when the database is back
            # A plug-in's result cannot be stored: its shard fails, and the queue goes on.
            log.exception("the result of %s cannot be stored", outcome.key)
            outcome = Outcome(outcome.key, "error", f"its result cannot be stored ({type(error).__name__}: {error})")
            with self._store.transaction() as session:
                stored = self._settle(session, item, outcome)
        log.info("%s ended: %s%s", outcome.key, outcome.kind, "" if stored else ", too late")
        if stored and outcome.kind == "result" and outcome.value.error is not None:
            failure = outcome.value.error
            level = logging.INFO if failure.code == Cancelled.code else logging.WARNING
            log.log(level, "%s failed: %s", outcome.key, failure.message)
        succeeded = stored and outcome.kind == "result" and outcome.value.error is None
        # The outcome may have ended the evaluation, or the last use of a checkpoint.
        if not succeeded or item.assignment.request.stage != "run" or item.cancelled_at is not None:
            self.wake()
        self._files.drop(item.assignment, succeeded=succeeded)
        with self._lock:
            del self._in_flight[outcome.key]
            self._count(item, outcome)
        self._cluster.release(outcome.key)

    def _settle(self, session: Session, item: InFlight, outcome: Outcome) -> bool:
        """Store the outcome of an attempt; return false if the attempt is not the current one any more."""
        assignment, limit = item.assignment, self._settings.max_attempts
        if outcome.kind == "result":
            return shards.finish(session, assignment, outcome.value, limit)
        if outcome.kind == "error":
            error = ShardError(InternalError.code, f"{outcome.value}; the worker's log has the details")
            return shards.finish(session, assignment, ShardResult(error=error))
        if item.lost:
            return shards.run_again(session, assignment, item.lost, output_lost(item.lost[0], self._settings), limit)
        if outcome.kind == "cancelled":
            return shards.give_up(session, assignment, "cancelled", None, limit)
        if item.cancelled_at is not None or outcome.kind == "lost":
            return shards.give_up(session, assignment, "lost", None, limit)
        if item.overran:
            stage = assignment.request.stage
            error = deadline_exceeded(stage, self._settings)
            # The next attempt would plan the same, for as long.
            return shards.give_up(session, assignment, "deadline_exceeded", error, 1 if stage == "plan" else limit)
        return shards.give_up(session, assignment, "worker_died", worker_died(outcome.cause, self._settings), limit)

    def _sweep(self) -> None:
        """Remove files of a killed service, once at the start."""
        if self._swept:
            return
        self._files.sweep(self._store)
        self._swept = True

    def _prune(self) -> None:
        """Prune periodically, with a delay so that a mistaken rule can be corrected."""
        if time.monotonic() < self._prune_at:
            return
        self._prune_at = time.monotonic() + PRUNE_EVERY
        pruned = prune(self._settings, self._store.transaction, self._store.reading)
        if pruned.artifacts:
            log.info("%d artifacts were pruned, %d bytes freed", pruned.artifacts, pruned.freed_bytes)

    def _sweep_uploads(self) -> None:
        if time.monotonic() < self._sweep_uploads_at:
            return
        self._sweep_uploads_at = time.monotonic() + SWEEP_EVERY
        if removed := Uploads(self._settings.uploads_path, self._settings.upload_bytes).sweep():
            log.info("%d uploads that expired were removed", removed)

    def _count(self, item: InFlight, outcome: Outcome) -> None:
        task = item.assignment.task_id
        if task in self._rates and outcome.kind == "result":
            self._rates[task].finished += item.units
        if not any(other.assignment.task_id == task for other in self._in_flight.values()):
            self._rates.pop(task, None)

    def _watch_cluster(self) -> None:
        if self._cluster.connected():
            self._disconnected_since = None
            return
        self._disconnected_since = self._disconnected_since or time.monotonic()
        if time.monotonic() - self._disconnected_since < LOST_AFTER or self._stopping.is_set():
            return
        if self._in_flight:
            log.warning("the scheduler went away; its %d shards are queued again", len(self._in_flight))
        self._abandon()
        self._cluster.close()
        self._cluster.start()

    def _stop_unwanted(self) -> None:
        if not self._in_flight:
            return
        with self._store.reading() as session:
            unwanted = shards.unwanted(session, [item.assignment.shard_id for item in self._in_flight.values()])
        for key, item in self._in_flight.items():
            if item.assignment.shard_id not in unwanted:
                continue
            if item.cancelled_at is None:
                item.cancelled_at = time.monotonic()
                self._cluster.cancel(key)
            elif time.monotonic() - item.cancelled_at > self._settings.grace:
                item.cancelled_at = time.monotonic()
                self._cluster.kill(key)

    def _stop_overdue(self) -> None:
        for key, item in self._in_flight.items():
            if item.killed_at is not None and time.monotonic() - item.killed_at < KILL_AGAIN:
                continue
            if not (item.overran or item.is_overdue(self._settings)):
                continue
            if not item.overran:
                log.warning("%s exceeded its deadline and is stopped", key)
            # Repeat the kill: until a shard has begun, its process is unknown.
            item.overran, item.killed_at = True, time.monotonic()
            self._cluster.kill(key)

    def _requeue_orphans(self) -> None:
        """Requeue shards that run in the database and not here: of a killed service, or of a lost answer."""
        if not self._may_have_orphans.is_set():
            return
        held = {item.assignment.shard_id: item.assignment.attempt for item in self._in_flight.values()}
        with self._store.transaction() as session:
            lost = shards.requeue_running(session, held)
        self._may_have_orphans.clear()
        if lost:
            self.wake()
            log.warning("%d shards were orphaned and are queued again", lost)

    def _note_outcome(self, outcome: Outcome) -> None:
        """Queue an outcome. Its new files are written first, by another thread, because they are large."""
        with self._lock:
            item = self._in_flight.get(outcome.key)
        if item is None:  # an attempt that was given up
            return
        if outcome.kind == "result":
            try:
                outcome = replace(outcome, value=unpack_result(item.assignment.request, outcome.value))
            except Exception as error:  # anything may come from a worker, and without an outcome its shard never ends
                outcome = Outcome(outcome.key, "error", f"its result cannot be read ({type(error).__name__}: {error})")
        if isinstance(outcome.value, ShardResult) and outcome.value.kept:
            self._keeping.submit(self._keep, outcome)
        else:
            self._outcomes.put(outcome)

    def _keep(self, outcome: Outcome) -> None:
        try:
            self._files.keep_new(outcome.value.kept)
        except Exception as error:  # later evaluations compute the files again
            log.warning("%s: new files are not kept for later evaluations: %s", outcome.key, error)
        self._outcomes.put(outcome)

    def _note_progress(self, key: str, done: int) -> None:
        with self._lock:
            if item := self._in_flight.get(key):
                item.done, item.heard = max(0, min(done, item.units)), time.monotonic()


def _may_pass(error: Exception) -> bool:
    return is_outage(error) or isinstance(error, DatabaseInUse)
