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
    """The service is alive."""

    status: Literal["ok"]
    version: Version


class Alive(Document):
    """The service can evaluate. Requests with a token get more details."""

    status: Literal["ok"]


class Ready(Document):
    """The service can evaluate."""

    status: Literal["ok"]
    database: Literal["ok"]
    schema: Literal["ok"]
    workers: Annotated[Count, Example(2)]


class ReadOnlyReady(Ready):
    """The service answers reads only."""

    read_only: Literal[True]


class Work(Document):
    """The shard that a worker is running."""

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
    """Numbers of shards in unfinished evaluations."""

    queued: Annotated[Count, Example(20)]
    running: Annotated[Count, Example(1)]


class RunQueue(Document):
    """Numbers of a run's unfinished evaluations."""

    run: RunName
    queued: Annotated[Count, Example(3)]
    running: Annotated[Count, Example(1)]
    oldest_seconds: Seconds | None
    """Seconds that the oldest queued evaluation has waited; null if none is queued."""


class Queue(Document):
    """Unfinished evaluations, and the throughput."""

    queued: Annotated[Count, Example(3)]
    running: Annotated[Count, Example(1)]
    oldest_seconds: Seconds | None
    """Seconds that the oldest queued evaluation has waited; null if none is queued."""
    shards: OpenShards
    finished_last_hour: Annotated[Count, Example(12)]
    """Number of evaluations that finished in the last hour, without cancelled ones."""
    seconds_left: Annotated[Seconds | None, Example(1200.0)]
    """Seconds until the queue is empty at the throughput of the last hour, not counting idle time."""
    runs: list[RunQueue]


class RunningTask(Document):
    """A task in progress."""

    name: Annotated[TaskName, Example("coco")]
    progress: Progress


class RunningEvaluation(Document):
    """An evaluation in progress."""

    id: Id
    run: RunName
    step: Step
    variant: Variant
    started_at: Time | None
    suite: Annotated[SuiteName, Example("coco")]
    tasks: list[RunningTask]


class FailedEvaluation(Document):
    """A failed evaluation, with its error."""

    id: Annotated[Id, Example(39)]
    run: RunName
    step: Step
    variant: Variant
    suite: Annotated[SuiteName, Example("coco")]
    state: Annotated[State, Example("failed")]
    finished_at: Time | None
    error: Error | None


class WarnedTask(Document):
    """A task with suspicions about its result."""

    id: Annotated[Id, Example(38)]
    """Id of the evaluation."""
    run: RunName
    step: Step
    variant: Variant
    suite: Annotated[SuiteName, Example("captions")]
    warnings: list[TaskWarning]
    task: Annotated[TaskName, Example("captions")]


class Disk(Document):
    """The disk of the data folder, measured at most once a minute."""

    free_bytes: Annotated[Count, Example(812_000_000_000)]
    """Free bytes of the disk."""
    total_bytes: Annotated[Count, Example(1_920_000_000_000)]
    data_bytes: Annotated[Count, Example(48_100_000_000)]
    """Bytes of the files in the data folder."""
    data_complete: Annotated[bool, Example(True)]
    """Whether all files were counted; otherwise `data_bytes` is a lower bound."""
    database_bytes: Annotated[Count | None, Example(212_000_000)]
    """Bytes of the database; null if the size is unknown."""


class Status(Document):
    """The state of the service as a whole."""

    status: Literal["ready", "not_ready"]
    missing: Annotated[list[str], Example([])]
    """Reasons why the service cannot evaluate, each with a remedy."""
    version: Version
    database: Annotated[str, Example("sqlite")]
    workers: list[Worker]
    queue: Queue
    running: list[RunningEvaluation]
    failed: list[FailedEvaluation]
    """Most recently failed evaluations, newest first."""
    warned: list[WarnedTask] = field(default_factory=list)
    """Most recently finished tasks with suspicions, newest first."""
    disk: Disk | None = None
    """Null until the disk is measured for the first time, or if the disk cannot be read."""
