"""A task whose shards do nothing for a while: the rest of their time is the service's. A plug-in of `service.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.task import Context, Plan, Task, TaskResult, Work


class Sleep(Task):
    """Shards that sleep; the value is how many there were."""

    kind: ClassVar[str] = "sleep"
    work: ClassVar[str] = "sleep_task:SleepWork"

    shards: int
    seconds: float = 0.0
    """Of each shard."""


class SleepWork(Work[Sleep]):
    """Sleep, and count the shards."""

    def plan(self, context: Context) -> Plan:
        return Plan([{"index": index, "units": 1} for index in range(self.task.shards)], "shards")

    def run(self, context: Context, shard: Mapping[str, Any]) -> int:
        time.sleep(self.task.seconds)
        return 1

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        total, protocol = sum(outputs), Protocol({"task": self.task.kind, "version": 1})
        return TaskResult([MetricValue(f"{self.task.name}/total", total, None, total, "shards", "none", protocol)])
