"""Documents of evaluations, their tasks, and what the tasks found."""

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
    """How far a task is, in units of its work."""

    done: Annotated[Count, Example(96)]
    total: Annotated[Count | None, Example(400)]
    """Null until the task is planned."""
    unit: Annotated[str | None, Example("sequences")]
    per_second: Annotated[float | None, Example(12.5)]
    seconds_left: Annotated[float | None, Example(24.3)]


class Interim(Document):
    """What a task that goes on found so far. The next look replaces it, and it never enters the history."""

    done: Annotated[Count, Example(96)]
    """Units of work that the metrics rest on."""
    metrics: list[Metric]
    protocols: Annotated[dict[str, Open], Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})]
    """The contents of the metrics' protocols, by id."""


class Retry(Document):
    """The shards of a task that failed by what may pass, and wait to be tried again."""

    shards: Annotated[Count, Example(1)]
    at: Time
    """When the first of them is tried again."""
    error: Error
    """What the first of them failed by."""


class ShardCounts(Document):
    """The shards of a task's work by state, without those that plan and merge."""

    total: Annotated[Count, Example(8)]
    succeeded: Annotated[Count, Example(1)]
    running: Annotated[Count, Example(2)]
    queued: Annotated[Count, Example(5)]
    failed: Annotated[Count, Example(0)]
    cancelled: Annotated[Count, Example(0)]
    skipped: Annotated[Count, Example(0)]
    attempts: Annotated[Count, Example(3)]
    """Attempts at all of them."""


class Task(Document):
    """A task of an evaluation: its state, its progress, its result."""

    name: TaskName
    kind: TaskKind
    state: Annotated[State, Example("running")]
    progress: Progress
    error: Annotated[Error | None, Example(None)]
    warnings: list[TaskWarning] = field(default_factory=list)
    metrics: list[Metric] | None
    """Null until the task has succeeded."""
    protocols: Annotated[dict[str, Open], Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})]
    """The contents of the metrics' protocols, by id."""
    provenance: Annotated[Open | None, Example({"device": "cuda:0"})]
    """Device, versions, seconds: what does not move a number."""
    shards: ShardCounts
    interim: Interim | None = None
    retry: Retry | None = None


class SuiteVersion(Document):
    """The suite that an evaluation began with."""

    name: SuiteName
    digest: Annotated[Digest, Example("4f0c…")]


class Evaluation(Document):
    """One suite on one checkpoint."""

    id: Id
    checkpoint: Annotated[Id, Example(17)]
    """The checkpoint's id."""
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
    """The checkpoint's id."""
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
    """Why the evaluation failed; null unless the evaluation or one of its tasks failed."""


class Evaluations(Document):
    """A page of the evaluations, the newest first."""

    evaluations: list[ListedEvaluation]
    next_cursor: NextCursor = None
    """The cursor of the next page; null on the last page."""
