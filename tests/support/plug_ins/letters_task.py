"""A task of another package: how many letters the checkpoint's label has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.task import Context, Plan, Shard, Task, TaskResult, Work


class Letters(Task):
    """Counts letters."""

    kind: ClassVar[str] = "letters"
    work: ClassVar[str] = "letters_task:LettersWork"

    times: int = 1
    """By how much the number is multiplied."""


@dataclass(frozen=True)
class Counted:
    """What a shard leaves for the merge."""

    letters: int


class LettersWork(Work[Letters, Shard, Counted]):
    def plan(self, context: Context) -> Plan[Shard]:
        return Plan([Shard(units=1)], "labels")

    def run(self, context: Context, shard: Shard) -> Counted:
        return Counted(sum(character.isalpha() for character in context.checkpoint.label))

    def merge(self, context: Context, shards: Sequence[Shard], outputs: Sequence[Counted]) -> TaskResult:
        count = self.task.times * outputs[0].letters
        name, protocol = f"{self.task.name}/count", Protocol({"task": self.task.kind, "times": self.task.times})
        return TaskResult([MetricValue(name, count, None, 1, "letters", "none", protocol)])
