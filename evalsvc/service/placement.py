"""Choosing a worker for a shard: preferably a free worker that has the checkpoint loaded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.shards import Assignment


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
