"""Shards in flight on the workers. Finished shards are in the database."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from evalsvc.config import Settings
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import units_of
from evalsvc.store.queue.shards import Assignment


@dataclass(frozen=True)
class AtWork:
    """The shard that a worker runs."""

    task_id: int
    stage: str
    seconds: float
    """Seconds since the shard was dispatched."""


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
