"""Documents of the service itself."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.evaluations import Progress
from evalsvc.spec.documents.fields import Count, Id, RunName, Seconds, State, Step, SuiteName, TaskName, Time, Variant
from evalsvc.spec.documents.results import Error, TaskWarning

Version = Annotated[str, Example("0.1.0")]


class Health(Document):
    """The service answers."""

    status: Literal["ok"]
    version: Version


class Alive(Document):
    """The service can evaluate; with a token a request is told more."""

    status: Literal["ok"]


class Ready(Document):
    """The service can evaluate."""

    status: Literal["ok"]
    database: Literal["ok"]
    schema: Literal["ok"]
    workers: Annotated[Count, Example(2)]


class ReadOnlyReady(Ready):
    """The service can answer reads, and does not write."""

    read_only: Literal[True]


class Work(Document):
    """The shard that a worker runs."""

    evaluation: Id
    run: RunName
    step: Step
    task: TaskName
    stage: Annotated[str, Example("run")]
    seconds: Annotated[float, Example(12.5, minimum=0)]


class Worker(Document):
    """A worker process."""

    name: Annotated[str, Example("cuda:0#0")]
    host: Annotated[str, Example("127.0.0.1")]
    takes_shards: Annotated[bool, Example(True)]
    runs: Work | None


class OpenShards(Document):
    """The shards of evaluations that are not over."""

    queued: Annotated[Count, Example(20)]
    running: Annotated[Count, Example(1)]


class RunQueue(Document):
    """The evaluations of a run that are not over."""

    run: RunName
    queued: Annotated[Count, Example(3)]
    running: Annotated[Count, Example(1)]
    oldest_seconds: Seconds | None
    """For how long the oldest of them has waited."""


class Queue(Document):
    """The evaluations that are not over, and the pace."""

    queued: Annotated[Count, Example(3)]
    running: Annotated[Count, Example(1)]
    oldest_seconds: Seconds | None
    """For how long the oldest of them has waited."""
    shards: OpenShards
    finished_last_hour: Annotated[Count, Example(12)]
    """Evaluations that ended by themselves."""
    seconds_left: Annotated[Seconds | None, Example(1200.0)]
    """How long the queue takes at the pace of the last hour, idle time left out."""
    runs: list[RunQueue]


class RunningTask(Document):
    """A task that is being worked on."""

    name: Annotated[TaskName, Example("coco")]
    progress: Progress


class RunningEvaluation(Document):
    """An evaluation that is being worked on."""

    id: Id
    run: RunName
    step: Step
    variant: Variant
    started_at: Time | None
    suite: Annotated[SuiteName, Example("coco")]
    tasks: list[RunningTask]


class FailedEvaluation(Document):
    """An evaluation that failed, and why."""

    id: Annotated[Id, Example(39)]
    run: RunName
    step: Step
    variant: Variant
    suite: Annotated[SuiteName, Example("coco")]
    state: Annotated[State, Example("failed")]
    finished_at: Time | None
    error: Error | None


class WarnedTask(Document):
    """A task with a suspicion about its result."""

    id: Annotated[Id, Example(38)]
    """The evaluation's id."""
    run: RunName
    step: Step
    variant: Variant
    suite: Annotated[SuiteName, Example("captions")]
    warnings: list[TaskWarning]
    task: Annotated[TaskName, Example("captions")]


class Status(Document):
    """The state of the whole service."""

    status: Literal["ready", "not_ready"]
    missing: Annotated[list[str], Example([])]
    """What keeps the service from evaluating, each with what to do."""
    version: Version
    database: Annotated[str, Example("sqlite")]
    workers: list[Worker]
    queue: Queue
    running: list[RunningEvaluation]
    failed: list[FailedEvaluation]
    """Those that failed last, the newest first."""
    warned: list[WarnedTask] = field(default_factory=list)
    """Those that ended last with a suspicion, the newest first."""
