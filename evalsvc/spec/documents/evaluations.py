"""Documents of evaluations: their tasks, results, events and artifacts."""

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
