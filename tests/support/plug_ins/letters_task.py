"""A task of another package: how many letters the checkpoint's label has."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.task import Context, Plan, Task, TaskResult, Work


class Letters(Task):
    """Counts letters."""

    kind: ClassVar[str] = "letters"
    work: ClassVar[str] = "letters_task:LettersWork"

    times: int = 1
    """By how much the number is multiplied."""


class LettersWork(Work[Letters]):
    def plan(self, context: Context) -> Plan:
        return Plan([{"units": 1}], "labels")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"letters": sum(character.isalpha() for character in context.checkpoint.label)}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        count = self.task.times * outputs[0]["letters"]
        name, protocol = f"{self.task.name}/count", Protocol({"task": self.task.kind, "times": self.task.times})
        return TaskResult([MetricValue(name, count, None, 1, "letters", "none", protocol)])
