"""A task that takes time and writes down every step, so that tests can count what ran twice. Installed as a plug-in."""

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.looks import Until, schedule
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.task import Context, Plan, Shard, Task, TaskResult, Work


class Steps(Task):
    """Steps of a given length; the value is their number."""

    kind: ClassVar[str] = "steps"
    work: ClassVar[str] = "steps_task:StepsWork"

    log: str
    """File that gets a line `shard step pid` per step begun."""
    shards: int = 8
    steps: int = 4
    seconds: float = 0.1
    """Length of a step."""
    poison: int | None = None
    """Index of a shard that kills its worker."""
    stuck: bool = False
    """Planning never ends, and leaves no other thread of its process the time to run."""
    deaf: bool = False
    """Never reports, so it never learns that it was cancelled."""
    leaves: bool = False
    """Leaves an artifact."""
    size: int = 0
    """Bytes that a shard sends back, beside its number of steps."""

    looks: bool = False
    """Is looked at between its shards, by a `mark` of every step."""
    until: Until | None = None
    drift: float = 0.0
    """How much higher the marks of a checkpoint are whose file's name has `worse` in it."""


@dataclass(frozen=True)
class StepsShard(Shard):
    index: int


@dataclass(frozen=True)
class StepsOutput:
    steps: int
    bytes: bytes


class StepsWork(Work[Steps, StepsShard, StepsOutput]):
    def plan(self, context: Context) -> Plan[StepsShard]:
        if self.task.stuck:
            re.match("(a+)+$", "a" * 64 + "b")
        shards = [StepsShard(self.task.steps, index) for index in range(self.task.shards)]
        looks = schedule([self.task.steps] * self.task.shards) if self.task.looks else ()
        return Plan(shards, "steps", looks, self.task.until)

    def run(self, context: Context, shard: StepsShard) -> StepsOutput:
        for step in range(self.task.steps):
            with Path(self.task.log).open("a") as stream:
                stream.write(f"{shard.index} {step} {os.getpid()}\n")
            time.sleep(self.task.seconds)
            if shard.index == self.task.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            if not self.task.deaf:
                context.report(step + 1)
        return StepsOutput(self.task.steps, bytes([shard.index]) * self.task.size)

    def marks(self, context: Context, shard: StepsShard) -> list[float]:
        """What any two checkpoints have in common, what is this one's own, and its drift."""
        name = Path(context.checkpoint.path).name
        steps = range(self.task.steps * shard.index, self.task.steps * (shard.index + 1))
        drift = self.task.drift if "worse" in name else 0.0
        return [Random(step).gauss(5, 1) + Random(f"{name} {step}").gauss(drift, 0.1) for step in steps]

    def merge(self, context: Context, shards: Sequence[StepsShard], outputs: Sequence[StepsOutput]) -> TaskResult:
        total = sum(output.steps for output in outputs)
        assert [output.bytes for output in outputs] == [bytes([shard.index]) * self.task.size for shard in shards]
        protocol = Protocol({"task": self.task.kind, "version": 1})
        metrics = [MetricValue(f"{self.task.name}/total", total, None, total, "steps", "none", protocol)]
        items: list[dict[str, Any]] = []
        if self.task.looks:
            marks = [mark for shard in shards for mark in self.marks(context, shard)]
            items = [{"index": index, "mark": mark} for index, mark in enumerate(marks)]
            name, error = f"{self.task.name}/mark", standard_error(marks)
            value = sum(marks) / len(marks)
            metrics.append(MetricValue(name, value, error, len(marks), "1", "lower", protocol, items=("mark",)))
        left = [Artifact("log", "log.txt", "text/plain", Path(self.task.log).read_bytes(), {"total": total})]
        base = context.base and {"label": context.base.checkpoint.label, "layout": context.base.checkpoint.layout}
        return TaskResult(metrics, items, notes={"base": base}, artifacts=left if self.task.leaves else [])
