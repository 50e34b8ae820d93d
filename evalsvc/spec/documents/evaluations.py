"""Documents of evaluations, with their tasks, events and artifacts, and of the service itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import (
    Count,
    Digest,
    Id,
    NextCursor,
    Open,
    RunName,
    Seconds,
    State,
    Step,
    SuiteName,
    TaskKind,
    TaskName,
    Time,
    Variant,
)
from evalsvc.spec.documents.results import Artifact, Error, Metric, TaskWarning


class Progress(Document):
    """Progress of a task, in units of work."""

    done: Annotated[Count, Field(examples=[96])]
    total: Annotated[Count | None, Field(examples=[400])]
    """Total units of work; null until the task is planned."""
    unit: Annotated[str | None, Field(examples=["sequences"])]
    per_second: Annotated[float | None, Field(examples=[12.5])]
    seconds_left: Annotated[float | None, Field(examples=[24.3])]


Share = Annotated[float, Field(ge=0, le=1, examples=[0.4], description="Share of the work that is done, by seconds.")]

SecondsLeft = Annotated[
    Seconds | None, Field(examples=[1200.0], description="Seconds until all is done, by earlier shards; null: unknown.")
]


class Interim(Document):
    """The result of a task that is still running. Each look replaces the previous result; an interim result never
    enters the history."""

    done: Annotated[Count, Field(examples=[96])]
    """Units of work that the metrics rest on."""
    metrics: list[Metric]
    protocols: Annotated[dict[str, Open], Field(examples=[{"9a3f0c1d2e4b5a69": {"task": "loss"}}])]
    """Contents of the metrics' protocols, by id."""


class Retry(Document):
    """The shards of a task that failed with a transient error and wait for a retry."""

    shards: Annotated[Count, Field(examples=[1])]
    at: Time
    """Time of the first retry."""
    error: Error
    """Error of the shard that is retried first."""


class ShardCounts(Document):
    """Numbers of a task's `run` shards by state, without the plan and merge stages."""

    total: Annotated[Count, Field(examples=[8])]
    succeeded: Annotated[Count, Field(examples=[1])]
    running: Annotated[Count, Field(examples=[2])]
    queued: Annotated[Count, Field(examples=[5])]
    failed: Annotated[Count, Field(examples=[0])]
    cancelled: Annotated[Count, Field(examples=[0])]
    skipped: Annotated[Count, Field(examples=[0])]
    attempts: Annotated[Count, Field(examples=[3])]
    """Number of attempts at all shards together."""


class Task(Document):
    """The state, progress and result of one task of an evaluation."""

    name: TaskName
    kind: TaskKind
    state: Annotated[State, Field(examples=["running"])]
    progress: Progress
    error: Annotated[Error | None, Field(examples=[None])]
    warnings: list[TaskWarning] = []
    metrics: list[Metric] | None
    """Metrics of the task; null until the task has succeeded."""
    protocols: Annotated[dict[str, Open], Field(examples=[{"9a3f0c1d2e4b5a69": {"task": "loss"}}])]
    """Contents of the metrics' protocols, by id."""
    provenance: Annotated[Open | None, Field(examples=[{"device": "cuda:0"}])]
    """Device, versions and seconds. Provenance does not affect comparability."""
    shards: ShardCounts
    interim: Interim | None = None
    retry: Retry | None = None


class SuiteVersion(Document):
    """The version of the suite that the evaluation uses."""

    name: SuiteName
    digest: Annotated[Digest, Field(examples=["4f0c…"])]


class ListedEvaluation(Document):
    """An evaluation in a list, without its tasks."""

    id: Id
    checkpoint: Annotated[Id, Field(examples=[17])]
    """Id of the checkpoint."""
    run: RunName
    step: Step
    variant: Variant
    suite: SuiteVersion
    state: Annotated[State, Field(examples=["failed"])]
    priority: Annotated[int, Field(examples=[0])]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    error: Error | None
    """Reason why the evaluation failed; null unless the evaluation or one of its tasks failed."""


class Evaluation(ListedEvaluation):
    """The evaluation of one checkpoint by one suite."""

    state: Annotated[State, Field(examples=["running"])]
    finished_at: Annotated[Time | None, Field(examples=[None])]
    error: Annotated[Error | None, Field(examples=[None])]
    tasks: list[Task]
    share_done: Share = 0.0
    seconds_left: SecondsLeft = None


class Evaluations(Document):
    """A page of the evaluations, newest first."""

    evaluations: list[ListedEvaluation]
    next_cursor: NextCursor = None


EventKind = Literal["state", "task", "interim", "progress", "end"]


class EventData(Document):
    """The content of an event. Fields that do not apply to an event are absent from its JSON."""

    evaluation: Id
    at: Time | None = None
    """Time of the event."""
    task: TaskName | None = None
    """Name of the task; absent from events of the evaluation as a whole."""
    state: State | None = None
    """New state of the evaluation or task."""
    error: Error | None = None
    """Reason why the evaluation or task failed."""
    warnings: list[TaskWarning] | None = None
    """Suspicions about the result of the task."""
    done: Count | None = None
    """Units of work that an interim result rests on."""
    metrics: list[Metric] | None = None
    """Metrics of an interim result."""
    protocols: Annotated[dict[str, Open] | None, Field(examples=[{"9a3f0c1d2e4b5a69": {"task": "loss"}}])] = None
    """Contents of the metrics' protocols, by id."""
    tasks: Annotated[dict[str, Progress] | None, Field(examples=[None])] = None
    """Progress of the running tasks, by name."""


class Event(Document):
    """An event of a stream."""

    id: Id | None = None
    """Id to resume the stream from, as `Last-Event-ID`; progress events have no id."""
    event: EventKind
    data: EventData


class Artifacts(Document):
    """A page of the artifacts of an evaluation or a run."""

    artifacts: list[Artifact]
    next_cursor: NextCursor = None


class Retention(Document):
    """The rule for which artifacts of a run are kept."""

    run: RunName
    keep: Annotated[
        dict[str, int | float | str] | None, Field(examples=[{"last": 10, "every": 1000, "best": "coco/fid"}])
    ]
    """Retention rule. An artifact that matches any part of the rule is kept; null: every artifact is kept."""
    from_: Literal["run", "service"] | None
    """Origin of the rule: the run itself, or the service's `EVALSVC_RETENTION`; null if there is no rule."""


class Pruned(Document):
    """Counts of pruned artifacts, or with `dry_run` of artifacts that would be pruned."""

    artifacts: Annotated[Count, Field(examples=[120])]
    bytes: Annotated[Count, Field(examples=[40_213_000])]
    """Total size of the pruned artifacts."""
    freed_bytes: Annotated[Count, Field(examples=[38_000_000])]
    """Bytes freed on disk: contents that no other artifact shares."""
    runs: Annotated[dict[str, Count], Field(examples=[{"t2i-1b-pretrained": 120}])]
    """Number of pruned artifacts by run."""
    dry_run: bool


Version = Annotated[str, Field(examples=["0.1.0"])]

Code = Annotated[
    str, Field(examples=["5f2b9c01d7aa"], description="Digest of the service's code, which its workers must have too.")
]

Commit = Annotated[
    str, Field(examples=["8c5f0e2"], description="Commit of the service's code; empty if it is not recorded.")
]


class Health(Document):
    """The service is alive."""

    status: Literal["ok"]
    version: Version
    code: Code = ""
    commit: Commit = ""


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
    refuses: Annotated[str, Field(examples=[""])] = ""
    """Why the worker gets no shards: it drains, sends no heartbeat, or runs another evalsvc than the service."""
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
    seconds_left: SecondsLeft = None


class Queue(Document):
    """Unfinished evaluations, and the throughput."""

    queued: Annotated[Count, Field(examples=[3])]
    running: Annotated[Count, Field(examples=[1])]
    oldest_seconds: Seconds | None
    """Seconds that the oldest queued evaluation has waited; null if none is queued."""
    shards: OpenShards
    finished_last_hour: Annotated[Count, Field(examples=[12])]
    """Number of evaluations that finished in the last hour, without cancelled ones."""
    seconds_left: SecondsLeft
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
    share_done: Share = 0.0
    seconds_left: SecondsLeft = None


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
    code: Code = ""
    commit: Commit = ""
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
