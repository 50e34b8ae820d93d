"""Documents of the service itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.evaluations import Progress
from evalsvc.spec.documents.fields import Count, Id, RunName, Seconds, State, Step, SuiteName, TaskName, Time, Variant
from evalsvc.spec.documents.results import Error, TaskWarning

Version = Annotated[str, Field(examples=["0.1.0"])]


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
    schema_: Literal["ok"]
    workers: Annotated[Count, Field(examples=[2])]


class ReadOnlyReady(Ready):
    """The service answers reads only."""

    read_only: Literal[True]


class Work(Document):
    """The shard that a worker is running."""

    evaluation: Id
    run: RunName
    step: Step
    task: TaskName
    stage: Annotated[str, Field(examples=["run"])]
    seconds: Annotated[float, Field(ge=0, examples=[12.5])]


class Worker(Document):
    """A worker process."""

    name: Annotated[str, Field(examples=["cuda:0#0"])]
    host: Annotated[str, Field(examples=["127.0.0.1"])]
    takes_shards: Annotated[bool, Field(examples=[True])]
    runs: Work | None


class OpenShards(Document):
    """Numbers of shards in unfinished evaluations."""

    queued: Annotated[Count, Field(examples=[20])]
    running: Annotated[Count, Field(examples=[1])]


class RunQueue(Document):
    """Numbers of a run's unfinished evaluations."""

    run: RunName
    queued: Annotated[Count, Field(examples=[3])]
    running: Annotated[Count, Field(examples=[1])]
    oldest_seconds: Seconds | None
    """Seconds that the oldest queued evaluation has waited; null if none is queued."""


class Queue(Document):
    """Unfinished evaluations, and the throughput."""

    queued: Annotated[Count, Field(examples=[3])]
    running: Annotated[Count, Field(examples=[1])]
    oldest_seconds: Seconds | None
    """Seconds that the oldest queued evaluation has waited; null if none is queued."""
    shards: OpenShards
    finished_last_hour: Annotated[Count, Field(examples=[12])]
    """Number of evaluations that finished in the last hour, without cancelled ones."""
    seconds_left: Annotated[Seconds | None, Field(examples=[1200.0])]
    """Seconds until the queue is empty at the throughput of the last hour, not counting idle time."""
    runs: list[RunQueue]


class RunningTask(Document):
    """A task in progress."""

    name: Annotated[TaskName, Field(examples=["coco"])]
    progress: Progress


class RunningEvaluation(Document):
    """An evaluation in progress."""

    id: Id
    run: RunName
    step: Step
    variant: Variant
    started_at: Time | None
    suite: Annotated[SuiteName, Field(examples=["coco"])]
    tasks: list[RunningTask]


class FailedEvaluation(Document):
    """A failed evaluation, with its error."""

    id: Annotated[Id, Field(examples=[39])]
    run: RunName
    step: Step
    variant: Variant
    suite: Annotated[SuiteName, Field(examples=["coco"])]
    state: Annotated[State, Field(examples=["failed"])]
    finished_at: Time | None
    error: Error | None


class WarnedTask(Document):
    """A task with suspicions about its result."""

    id: Annotated[Id, Field(examples=[38])]
    """Id of the evaluation."""
    run: RunName
    step: Step
    variant: Variant
    suite: Annotated[SuiteName, Field(examples=["captions"])]
    warnings: list[TaskWarning]
    task: Annotated[TaskName, Field(examples=["captions"])]


class Disk(Document):
    """The disk of the data folder, measured at most once a minute."""

    free_bytes: Annotated[Count, Field(examples=[812_000_000_000])]
    """Free bytes of the disk."""
    total_bytes: Annotated[Count, Field(examples=[1_920_000_000_000])]
    data_bytes: Annotated[Count, Field(examples=[48_100_000_000])]
    """Bytes of the files in the data folder."""
    data_complete: Annotated[bool, Field(examples=[True])]
    """Whether all files were counted; otherwise `data_bytes` is a lower bound."""
    database_bytes: Annotated[Count | None, Field(examples=[212_000_000])]
    """Bytes of the database; null if the size is unknown."""


class Status(Document):
    """The state of the service as a whole."""

    status: Literal["ready", "not_ready"]
    missing: Annotated[list[str], Field(examples=[[]])]
    """Reasons why the service cannot evaluate, each with a remedy."""
    version: Version
    database: Annotated[str, Field(examples=["sqlite"])]
    workers: list[Worker]
    queue: Queue
    running: list[RunningEvaluation]
    failed: list[FailedEvaluation]
    """Most recently failed evaluations, newest first."""
    warned: list[WarnedTask] = []
    """Most recently finished tasks with suspicions, newest first."""
    disk: Disk | None = None
    """Null until the disk is measured for the first time, or if the disk cannot be read."""
