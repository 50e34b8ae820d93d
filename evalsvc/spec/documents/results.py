"""The result document: `evalsvc run --output` writes it, and the service answers with it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import (
    Count,
    Digest,
    Direction,
    Id,
    Number,
    RunName,
    State,
    Step,
    Text,
    Time,
    Variant,
)


class Metric(Document):
    """A value of a metric."""

    name: Annotated[str, Field(examples=["pairs/text"])]
    value: Annotated[Number, Field(examples=[5.17])]
    stderr: Annotated[Number | None, Field(examples=[0.03])]
    low: Annotated[float | None, Field(examples=[5.11])] = None
    """Lower end of the interval of 95 %; null if the value has no interval."""
    high: Annotated[float | None, Field(examples=[5.23])] = None
    n: Annotated[int, Field(ge=0, examples=[360])]
    unit: Annotated[str, Field(examples=["nats/token"])]
    direction: Direction
    protocol: Annotated[str, Field(examples=["9a3f0c1d2e4b5a69"])]
    """Id of the protocol."""
    baseline: Annotated[Number | None, Field(examples=[10.8])] = None
    """Value of a model that knows nothing; null if there is no such value."""
    items: Annotated[list[str], Field(examples=[["nll", "tokens"]])] = []
    """Numbers per item that the value is computed from: one name for a mean, two names for a ratio of sums."""
    groups: Annotated[Count | None, Field(examples=[None])] = None
    """Independent groups of the `n` items; null if every item is its own group."""
    grouped_by: Annotated[str | None, Field(examples=[None])] = None
    """Key of the items that holds the group of an item."""
    drawn_from: Annotated[Count | None, Field(examples=[None])] = None
    """Size of the population that the `n` items were drawn from without replacement."""


class TaskMetric(Metric):
    """A value of a metric, with the task that measured it."""

    n: Annotated[Count, Field(examples=[360])]
    task: Annotated[str | None, Field(examples=["pairs"])] = None


class Error(Document):
    """The reason for a failure."""

    code: Annotated[str, Field(examples=["non_finite"])]
    """Stable name of the kind of error."""
    message: Text


class TaskWarning(Document):
    """A suspicion about a task's result: a number that cannot be right, or too little data behind it."""

    code: Annotated[str, Field(examples=["inputs_cut"])]
    metric: Annotated[str, Field(examples=["arc_easy"])]
    message: Annotated[str, Field(examples=["12 of 2,376 …"])]


class EvaluationSummary(Document):
    """An evaluation of a checkpoint by a suite."""

    id: Id
    suite: Annotated[str, Field(examples=["loss"])]
    state: State


class Artifact(Document):
    """A file for people to look at; download its content from `/v1/artifacts/{id}`."""

    id: Id
    evaluation: Id
    run: RunName
    step: Step
    variant: Variant
    task: Annotated[str, Field(examples=["coco"])]
    kind: Annotated[str, Field(examples=["grid"])]
    name: Annotated[str, Field(examples=["grid.png"])]
    media_type: Annotated[str, Field(examples=["image/png"])]
    size: Count
    sha256: Digest
    details: Annotated[dict[str, object] | None, Field(examples=[{}])]
    pruned_at: Annotated[Time | None, Field(examples=[None])]
    """Time at which the content was removed; null if the content exists."""


class ResultCheckpoint(Document):
    """The checkpoint that the result describes."""

    path: Text
    label: Text
    sha256: Digest | None


class ResultSuite(Document):
    """The suite that was evaluated; if there are several suites, all of their tasks."""

    name: Annotated[str, Field(examples=["loss"])]
    digest: Digest | None
    """Digest of the suite; null if several suites are combined."""
    tasks: Annotated[list[dict[str, object]], Field(examples=[[{"kind": "loss", "name": "pairs"}]])]
    """Tasks of the suite, with their parameters."""


class ResultDocument(Document):
    """The part of a checkpoint's result that comparisons read. Fields that are objects are keyed by task."""

    metrics: list[TaskMetric]
    protocols: Annotated[dict[str, dict[str, object]], Field(examples=[{"9a3f0c1d2e4b5a69": {"task": "loss"}}])] = {}
    """Contents of the protocols, by id."""
    items: Annotated[dict[str, list[dict[str, object]]], Field(examples=[{"pairs": [{"index": 0, "nll": 51.2}]}])] = {}
    """Results per item, by task."""
    errors: Annotated[dict[str, Error], Field(examples=[{}])] = {}
    """Reason for each task without metrics."""
    warnings: Annotated[dict[str, list[TaskWarning]], Field(examples=[{}])] = {}
    provenance: Annotated[dict[str, dict[str, object]], Field(examples=[{"pairs": {"device": "cpu"}}])] = {}
    """Device, versions, host and seconds, by task."""


class ResultFile(ResultDocument):
    """The file that `evalsvc run --output` writes."""

    checkpoint: ResultCheckpoint
    suite: ResultSuite
    artifacts: Annotated[dict[str, list[dict[str, object]]], Field(examples=[{"pairs": []}])]
    """Files for people to look at, by task, each with its path next to the result file."""


class StoredCheckpoint(ResultCheckpoint):
    """A checkpoint of the service."""

    id: Id
    run: RunName
    step: Step
    variant: Variant


class CheckpointResult(ResultDocument):
    """The result of a checkpoint: the newest evaluation of each suite."""

    checkpoint: StoredCheckpoint
    suite: ResultSuite
    state: State
    """The worst state of the evaluations."""
    evaluations: list[EvaluationSummary]
    artifacts: Annotated[dict[str, list[Artifact]], Field(examples=[{"pairs": []}])]
