"""A task whose shards do nothing for a while: the rest of their time is the service's. A plug-in of `service.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.task import Context, Plan, Shard, Task, TaskResult, Work


class Sleep(Task):
    """Shards that sleep; the value is how many there were."""

    kind: ClassVar[str] = "sleep"
    work: ClassVar[str] = "sleep_task:SleepWork"

    shards: int
    seconds: float = 0.0
    """Of each shard."""


@dataclass(frozen=True)
class Slept:
    """What a shard leaves."""

    shards: int = 1


class SleepWork(Work[Sleep, Shard, Slept]):
    """Sleep, and count the shards."""

    def plan(self, context: Context) -> Plan[Shard]:
        return Plan([Shard(units=1)] * self.task.shards, "shards")

    def run(self, context: Context, shard: Shard) -> Slept:
        time.sleep(self.task.seconds)
        return Slept()

    def merge(self, context: Context, shards: Sequence[Shard], outputs: Sequence[Slept]) -> TaskResult:
        total, protocol = sum(output.shards for output in outputs), Protocol({"task": self.task.kind, "version": 1})
        return TaskResult([MetricValue(f"{self.task.name}/total", total, None, total, "shards", "none", protocol)])
