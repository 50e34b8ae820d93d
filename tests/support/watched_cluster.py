"""A cluster that remembers what it was told."""

import queue

from machines import wait_for

from evalsvc.cluster.cluster import Cluster, Outcome
from evalsvc.config import Settings


class Watched(Cluster):
    def __init__(self, settings: Settings) -> None:
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.progress: list[tuple[str, int]] = []
        super().__init__(settings, lambda key, done: self.progress.append((key, done)), self.outcomes.put)

    def outcome(self, seconds: float = 60) -> Outcome:
        """The next outcome of a call, which is released."""
        outcome = self.outcomes.get(timeout=seconds)
        self.release(outcome.key)
        self.release_futures()
        return outcome

    def wait_for_progress(self, *keys: str) -> None:
        """Wait until these calls have begun."""
        wait_for(lambda: set(keys) <= {key for key, _ in self.progress}, f"{keys} have begun")
