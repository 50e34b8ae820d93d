"""A cluster that remembers what it was told."""

import asyncio
import os
import queue
from pathlib import Path
from typing import Self
from unittest.mock import patch

from machines import wait_for

from evalsvc.cluster import supervisor
from evalsvc.cluster.cluster import Cluster, Outcome
from evalsvc.cluster.nanny import WorkerNanny
from evalsvc.config import Settings


class Watched(Cluster):
    def __init__(self, settings: Settings) -> None:
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.progress: list[tuple[str, int]] = []
        super().__init__(settings, lambda key, done: self.progress.append((key, done)), self.outcomes.put)

    def outcome(self, seconds: float = 60) -> Outcome:
        outcome = self.outcomes.get(timeout=seconds)
        self.release(outcome.key)
        self.release_futures()
        return outcome

    def wait_for_progress(self, *keys: str) -> None:
        wait_for(lambda: set(keys) <= {key for key, _ in self.progress}, f"{keys} have begun")


def serve_slowly(settings: Settings, scheduler: str, started: Path) -> None:
    """Do what `evalsvc worker` does; `started` is made once the worker process serves the scheduler."""

    class SlowNanny(WorkerNanny):
        async def __aenter__(self) -> Self:
            await super().__aenter__()
            started.touch()
            await asyncio.sleep(60)
            return self

    with patch.object(supervisor, "WorkerNanny", SlowNanny):
        os._exit(supervisor.run_workers(settings, scheduler, print))
