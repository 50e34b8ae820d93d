"""Documents of evaluations, tasks and their results."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
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
from evalsvc.spec.documents.results import Error, Metric, TaskWarning


class Progress(Document):
    """Progress of a task, in units of work."""

    done: Annotated[Count, Example(96)]
    total: Annotated[Count | None, Example(400)]
    """Total units of work; null until the task is planned."""
    unit: Annotated[str | None, Example("sequences")]
    per_second: Annotated[float | None, Example(12.5)]
    seconds_left: Annotated[float | None, Example(24.3)]


class Interim(Document):
    """The result of a task that is still running. Each look replaces the previous result; an interim result never
    enters the history."""

    done: Annotated[Count, Example(96)]
    """Units of work that the metrics rest on."""
    metrics: list[Metric]
    protocols: Annotated[dict[str, Open], Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})]
    """Contents of the metrics' protocols, by id."""


class Retry(Document):
    """The shards of a task that failed with a transient error and wait for a retry."""

    shards: Annotated[Count, Example(1)]
    at: Time
    """Time of the first retry."""
    error: Error
    """Error of the shard that is retried first."""


class ShardCounts(Document):
    """Numbers of a task's `run` shards by state, without the plan and merge stages."""

    total: Annotated[Count, Example(8)]
    succeeded: Annotated[Count, Example(1)]
    running: Annotated[Count, Example(2)]
    queued: Annotated[Count, Example(5)]
    failed: Annotated[Count, Example(0)]
    cancelled: Annotated[Count, Example(0)]
    skipped: Annotated[Count, Example(0)]
    attempts: Annotated[Count, Example(3)]
    """Number of attempts at all shards together."""


class Task(Document):
    """The state, progress and result of one task of an evaluation."""

    name: TaskName
    kind: TaskKind
    state: Annotated[State, Example("running")]
    progress: Progress
    error: Annotated[Error | None, Example(None)]
    warnings: list[TaskWarning] = field(default_factory=list)
    metrics: list[Metric] | None
    """Metrics of the task; null until the task has succeeded."""
    protocols: Annotated[dict[str, Open], Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})]
    """Contents of the metrics' protocols, by id."""
    provenance: Annotated[Open | None, Example({"device": "cuda:0"})]
    """Device, versions and seconds. Provenance does not affect comparability."""
    shards: ShardCounts
    interim: Interim | None = None
    retry: Retry | None = None


class SuiteVersion(Document):
    """The version of the suite that the evaluation uses."""

    name: SuiteName
    digest: Annotated[Digest, Example("4f0c…")]


class Evaluation(Document):
    """The evaluation of one checkpoint by one suite."""

    id: Id
    checkpoint: Annotated[Id, Example(17)]
    """Id of the checkpoint."""
    run: RunName
    step: Step
    variant: Variant
    suite: SuiteVersion
    state: Annotated[State, Example("running")]
    priority: Annotated[int, Example(0)]
    created_at: Time
    started_at: Time | None
    finished_at: Annotated[Time | None, Example(None)]
    error: Annotated[Error | None, Example(None)]
    tasks: list[Task]


class ListedEvaluation(Document):
    """An evaluation in a list, without its tasks."""

    id: Id
    checkpoint: Annotated[Id, Example(17)]
    """Id of the checkpoint."""
    run: RunName
    step: Step
    variant: Variant
    suite: SuiteVersion
    state: Annotated[State, Example("failed")]
    priority: Annotated[int, Example(0)]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    error: Error | None
    """Reason why the evaluation failed; null unless the evaluation or one of its tasks failed."""


class Evaluations(Document):
    """A page of the evaluations, newest first."""

    evaluations: list[ListedEvaluation]
    next_cursor: NextCursor = None
    """Cursor of the next page; null on the last page."""
