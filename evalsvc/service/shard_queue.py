"""The queue of a service: takes shards out of the database, and stores the outcomes of their attempts. No threads."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy.orm import Session

from evalsvc.cluster.cluster import Outcome
from evalsvc.config import Settings
from evalsvc.errors import ArtifactNotWritten, Cancelled, DatabaseInUse, DeadlineExceeded, InternalError, WorkerDied
from evalsvc.files.artifacts import naming
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import ShardError, ShardResult, units_of
from evalsvc.service.shard_files import ShardFiles
from evalsvc.store.queue import attempts
from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.status import AtWork
from evalsvc.store.session import Store, is_outage
from evalsvc.store.views import LiveTask

log = logging.getLogger(__name__)


class ShardQueue:
    def __init__(self, store: Store, settings: Settings, files: ShardFiles) -> None:
        self._store = store
        self._settings = settings
        self._files = files
        self.may_have_orphans = threading.Event()
        """Set if shards may be running in the database and on no worker."""
        self.may_have_orphans.set()

    def take(self, worker_state: WorkerState) -> Assignment | None:
        try:
            with self._store.transaction() as session:
                return attempts.take(session, self._settings.data_path, worker_state)
        except Exception:
            # The database may have committed although its answer was lost. Then no worker has the running shard.
            self.may_have_orphans.set()
            raise

    def is_empty(self) -> bool:
        with self._store.reading() as session:
            return not attempts.is_queued(session)

    def unwanted(self, shard_ids: Collection[int]) -> set[int]:
        if not shard_ids:
            return set()
        with self._store.reading() as session:
            return attempts.unwanted(session, shard_ids)

    def requeue_orphans(self, held: Mapping[int, int]) -> int:
        """Requeue shards that run in the database and not here: of a killed service, or of a lost answer."""
        if not self.may_have_orphans.is_set():
            return 0
        with self._store.transaction() as session:
            lost = attempts.requeue_running(session, held)
        self.may_have_orphans.clear()
        if lost:
            log.warning("%d shards were orphaned and are queued again", lost)
        return lost

    def settle(self, item: InFlight, outcome: Outcome) -> bool:
        """Store the outcome of an attempt; return whether the attempt succeeded, and was the current one. Raise an
        error that may pass, such as an outage of the database, after which the outcome can be stored."""
        if isinstance(outcome.value, ShardResult) and outcome.value.lost:
            item.lost, outcome = list(outcome.value.lost), Outcome(outcome.key, "lost")
            log.warning("%s cannot read outputs of other shards, which are rerun: %s", outcome.key, item.lost)
        try:
            with naming:
                if outcome.kind == "result":
                    outcome = replace(outcome, value=self._files.keep(item.assignment, outcome.value))
                with self._store.transaction() as session:
                    stored = self._store_outcome(session, item, outcome)
        except Exception as error:
            if may_pass(error):
                raise
            # A plug-in's result cannot be stored: its shard fails, and the queue goes on.
            log.exception("the result of %s cannot be stored", outcome.key)
            outcome = Outcome(outcome.key, "error", f"its result cannot be stored ({type(error).__name__}: {error})")
            with self._store.transaction() as session:
                stored = self._store_outcome(session, item, outcome)
        log.info("%s ended: %s%s", outcome.key, outcome.kind, "" if stored else ", too late")
        failure = outcome.value.error if outcome.kind == "result" else None
        if stored and failure is not None:
            level = logging.INFO if failure.code == Cancelled.code else logging.WARNING
            log.log(level, "%s failed: %s", outcome.key, failure.message)
        succeeded = stored and outcome.kind == "result" and failure is None
        self._files.drop(item.assignment, succeeded=succeeded)
        return succeeded

    def _store_outcome(self, session: Session, item: InFlight, outcome: Outcome) -> bool:
        assignment, limit = item.assignment, self._settings.max_attempts
        if outcome.kind == "result":
            return attempts.finish(session, assignment, outcome.value, limit)
        if outcome.kind == "error":
            error = ShardError(InternalError.code, f"{outcome.value}; the worker's log has the details")
            return attempts.finish(session, assignment, ShardResult(error=error))
        if item.lost:
            lost = item.lost[0].path(self._settings.outputs_path)
            error = ShardError(
                ArtifactNotWritten.code,
                f"the output of a shard was written to {lost} and was missing, or changed, when it was read, {limit} "
                "times; check the disk, then retry the evaluation",
            )
            return attempts.run_again(session, assignment, item.lost, error, limit)
        if outcome.kind == "cancelled":
            return attempts.give_up(session, assignment, "cancelled", None, limit)
        if item.cancelled_at is not None or outcome.kind == "lost":
            return attempts.give_up(session, assignment, "lost", None, limit)
        if item.overran and assignment.request.stage == "plan":
            error = ShardError(
                DeadlineExceeded.code,
                f"planning was stopped after {self._settings.plan_deadline:g} s without progress; look for a template, "
                "a tokenizer or data of this task that takes as long, or raise EVALSVC_SHARD_DEADLINE of the service, "
                "then retry the evaluation",
            )
            # The next attempt would plan the same, for as long.
            return attempts.give_up(session, assignment, "deadline_exceeded", error, 1)
        if item.overran:
            error = ShardError(
                DeadlineExceeded.code,
                f"the shard ran longer than {self._settings.shard_deadline:g} s, {limit} times; raise "
                "EVALSVC_SHARD_DEADLINE or give the task more shards, then retry the evaluation",
            )
            return attempts.give_up(session, assignment, "deadline_exceeded", error, limit)
        how = f"the last time, {outcome.cause}" if outcome.cause else "killed, out of memory, or crashed"
        error = ShardError(
            WorkerDied.code,
            f"the worker process died while it ran this shard, {limit} times ({how}); check the machine's log, lower "
            "EVALSVC_BATCH_TOKENS, then retry the evaluation",
        )
        return attempts.give_up(session, assignment, "worker_died", error, limit)


def may_pass(error: Exception) -> bool:
    return is_outage(error) or isinstance(error, DatabaseInUse)


@dataclass
class InFlight:
    """An attempt that was dispatched and whose outcome is not stored yet."""

    assignment: Assignment
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    heard: float = field(default_factory=time.monotonic)
    """Time of the last progress."""
    cancelled_at: float | None = None
    overran: bool = False
    killed_at: float | None = None
    lost: list[OutputFile] = field(default_factory=list)
    """Outputs of other shards that this shard needs and could not read."""

    def is_overdue(self, settings: Settings) -> bool:
        """Return whether the attempt runs for too long, or plans without progress, such as that of a download."""
        now = time.monotonic()
        plans_too_long = self.assignment.request.stage == "plan" and now - self.heard >= settings.plan_deadline
        return plans_too_long or now - self.started >= settings.shard_deadline

    @property
    def units(self) -> int:
        request = self.assignment.request
        return units_of(request.shards[0]) if request.stage == "run" else 0


@dataclass
class Rate:
    """Units of a task that were finished since this process first saw it."""

    started: float = field(default_factory=time.monotonic)
    finished: int = 0


class InFlightTable:
    """The attempts in flight by key, and the rates of their tasks. Only the coordinator's thread adds and removes
    attempts; any thread may read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: dict[str, InFlight] = {}
        self._rates: dict[int, Rate] = {}

    def items(self) -> list[InFlight]:
        with self._lock:
            return list(self._items.values())

    def get(self, key: str) -> InFlight | None:
        with self._lock:
            return self._items.get(key)

    def add(self, assignment: Assignment) -> None:
        with self._lock:
            self._items[assignment.key] = InFlight(assignment)
            if assignment.request.stage == "run":
                self._rates.setdefault(assignment.task_id, Rate())

    def remove(self, item: InFlight, *, succeeded: bool) -> None:
        task = item.assignment.task_id
        with self._lock:
            del self._items[item.assignment.key]
            if succeeded and task in self._rates:
                self._rates[task].finished += item.units
            if not any(other.assignment.task_id == task for other in self._items.values()):
                self._rates.pop(task, None)

    def note_progress(self, key: str, done: int) -> None:
        with self._lock:
            if item := self._items.get(key):
                item.done, item.heard = max(0, min(done, item.units)), time.monotonic()

    def live(self) -> Mapping[int, LiveTask]:
        """Return the progress of running tasks, by task id."""
        now, live = time.monotonic(), {}
        with self._lock:
            runs = [item for item in self._items.values() if item.assignment.request.stage == "run"]
            for task in {item.assignment.task_id for item in runs}:
                units = sum(item.done for item in runs if item.assignment.task_id == task)
                rate = self._rates[task]
                finished, seconds = rate.finished + units, now - rate.started
                live[task] = LiveTask(units, finished / seconds if seconds > 0 and finished else None)
        return live

    def at_work(self, place: Callable[[str], str | None]) -> Mapping[str, AtWork]:
        """Return running shards, by the address of their worker, which `place` returns for a key."""
        moment = time.monotonic()
        return {
            address: AtWork(item.assignment.task_id, item.assignment.request.stage, round(moment - item.started, 1))
            for item in self.items()
            if (address := place(item.assignment.key)) is not None
        }


class Placement:
    """State of the workers, by address. Losing it is harmless and costs some loading."""

    def __init__(self) -> None:
        self._loaded: dict[str, int] = {}
        self._turns: dict[int, float] = {}

    def worker_state(self, free: Sequence[str], running: Iterable[Assignment]) -> WorkerState:
        loaded = frozenset(self._loaded[worker] for worker in free if worker in self._loaded)
        return WorkerState(loaded, Counter(assignment.run_id for assignment in running), self._turns)

    def choose(self, free: Sequence[str], assignment: Assignment) -> str:
        """Return a free worker for a shard: one that has the checkpoint loaded, else one that has none, else the first.
        A busy worker is never waited for, because loading is faster than most shards."""
        wanted = assignment.checkpoint_id
        worker = min(free, key=lambda worker: (self._loaded.get(worker) != wanted, worker in self._loaded))
        if assignment.begins:
            self._turns[assignment.run_id] = time.monotonic()
        # Planning and merging need no weights, so the loaded checkpoint stays.
        if assignment.request.stage == "run":
            self._loaded[worker] = wanted
        return worker
