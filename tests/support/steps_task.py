"""A task that takes time and writes down every step, so that tests can count what ran twice. Installed as a plug-in."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from evalsvc.artifacts import Artifact
from evalsvc.protocol import MetricValue, Protocol
from evalsvc.tasks.task import Context, Plan, Task, TaskResult


class Steps(Task):
    """Steps of a given length; the value is their number."""

    kind: ClassVar[str] = "steps"

    log: str
    """File that gets a line `shard step pid` per step begun."""
    shards: int = 8
    steps: int = 4
    seconds: float = 0.1
    """Length of a step."""
    poison: int | None = None
    """Index of a shard that kills its worker."""
    deaf: bool = False
    """Never reports, so it never learns that it was cancelled."""

    leaves: bool = False
    """Leaves an artifact."""

    def plan(self, context: Context) -> Plan:
        return Plan([{"index": index, "units": self.steps} for index in range(self.shards)], unit="steps")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        for step in range(self.steps):
            with Path(self.log).open("a") as stream:
                stream.write(f"{shard['index']} {step} {os.getpid()}\n")
            time.sleep(self.seconds)
            if shard["index"] == self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            if not self.deaf:
                context.report(step + 1)
        return {"steps": self.steps}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        total = sum(output["steps"] for output in outputs)
        protocol = Protocol({"task": self.kind, "version": 1})
        metrics = [MetricValue(f"{self.name}/total", total, None, total, "steps", "none", protocol)]
        left = [Artifact("log", "log.txt", "text/plain", Path(self.log).read_bytes(), {"total": total})]
        base = context.base and {"label": context.base.checkpoint.label, "layout": context.base.checkpoint.layout}
        return TaskResult(metrics, notes={"base": base}, artifacts=left if self.leaves else [])
