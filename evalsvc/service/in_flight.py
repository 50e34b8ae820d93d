"""Shards in flight on the workers, and the choice of a worker for a shard. Finished shards are in the database."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evalsvc.config import Settings
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import units_of
from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.status import AtWork
from evalsvc.store.views import LiveTask


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
        """Return the state that the order of the queue depends on, with these free workers and these shards running."""
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
