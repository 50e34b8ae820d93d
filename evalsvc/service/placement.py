"""Which worker gets which shard: one that has the checkpoint loaded, where there is one free."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.shards import Assignment


class Placement:
    """What is known of the workers, by their addresses; it may be lost at any time, and costs some loading then."""

    def __init__(self) -> None:
        self._loaded: dict[str, int] = {}
        self._turns: dict[int, float] = {}

    def worker_state(self, free: Sequence[str], running: Iterable[Assignment]) -> WorkerState:
        """What the order of the queue asks for, with these workers free and these shards on others."""
        loaded = frozenset(self._loaded[worker] for worker in free if worker in self._loaded)
        return WorkerState(loaded, Counter(assignment.run_id for assignment in running), self._turns)

    def choose(self, free: Sequence[str], assignment: Assignment) -> str:
        """A free worker for a shard: with its checkpoint loaded, else with none, else the first. It never waits for one
        that is busy: loading takes less long than most shards."""
        wanted = assignment.checkpoint_id
        worker = min(free, key=lambda worker: (self._loaded.get(worker) != wanted, worker in self._loaded))
        if assignment.begins:
            self._turns[assignment.run_id] = time.monotonic()
        # Planning and merging need no weights, and leave what is loaded.
        if assignment.request.stage == "run":
            self._loaded[worker] = wanted
        return worker
