"""The result of a checkpoint: what `evalsvc run --output` writes, and what the service answers with."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
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

    name: Annotated[str, Example("pairs/text")]
    value: Annotated[Number, Example(5.17)]
    stderr: Annotated[Number | None, Example(0.03)]
    n: Annotated[int, Example(360, minimum=0)]
    unit: Annotated[str, Example("nats/token")]
    direction: Direction
    protocol: Annotated[str, Example("9a3f0c1d2e4b5a69")]
    """The id of the protocol."""
    baseline: Annotated[Number | None, Example(10.8)] = None
    """The value of a model that knows nothing; null where there is none."""
    items: Annotated[list[str], Example(["nll", "tokens"])] = field(default_factory=list)
    """The numbers of the task's items that the value is made of: the mean of one, or the ratio of the sums of two."""
    groups: Annotated[Count | None, Example(None)] = None
    """Independent groups of the `n` items; null where every item is one."""
    grouped_by: Annotated[str | None, Example(None)] = None
    """The key of the items that names the group of each."""
    drawn_from: Annotated[Count | None, Example(None)] = None
    """Of how many items the `n` are a sample without replacement."""


class TaskMetric(Metric):
    """A value of a metric, with the task that measured the value."""

    n: Annotated[Count, Example(360)]
    task: Annotated[str | None, Example("pairs")] = None


class Error(Document):
    """Why something failed."""

    code: Annotated[str, Example("non_finite")]
    """The stable name of the kind of error."""
    message: Text


class TaskWarning(Document):
    """A suspicion about a task's result: a number that cannot be right, or that rests on too little."""

    code: Annotated[str, Example("inputs_cut")]
    metric: Annotated[str, Example("arc_easy")]
    message: Annotated[str, Example("12 of 2,376 …")]


class EvaluationSummary(Document):
    """An evaluation of a checkpoint by a suite."""

    id: Id
    suite: Annotated[str, Example("loss")]
    state: State


class Artifact(Document):
    """What an evaluation left to be looked at; the content is at `/v1/artifacts/{id}`."""

    id: Id
    evaluation: Id
    run: RunName
    step: Step
    variant: Variant
    task: Annotated[str, Example("coco")]
    kind: Annotated[str, Example("grid")]
    name: Annotated[str, Example("grid.png")]
    media_type: Annotated[str, Example("image/png")]
    size: Count
    sha256: Digest
    details: Annotated[dict[str, object] | None, Example({})]
    pruned_at: Annotated[Time | None, Example(None)]
    """When the content was removed."""


class ResultCheckpoint(Document):
    """The checkpoint that a result is about."""

    path: Text
    label: Text
    sha256: Digest | None


class ResultSuite(Document):
    """The suite that a result is from; of several suites, all of their tasks."""

    name: Annotated[str, Example("loss")]
    digest: Digest | None
    """Null where several suites are put together."""
    tasks: Annotated[list[dict[str, object]], Example([{"kind": "loss", "name": "pairs"}])]
    """Each task with its parameters."""


class ResultDocument(Document):
    """The result of a checkpoint, as far as comparisons read it; by task where a field is an object."""

    metrics: list[TaskMetric]
    protocols: Annotated[dict[str, dict[str, object]], Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})] = field(
        default_factory=dict
    )
    """The contents of the protocols by id."""
    items: Annotated[dict[str, list[dict[str, object]]], Example({"pairs": [{"index": 0, "nll": 51.2}]})] = field(
        default_factory=dict
    )
    """Results per item."""
    errors: Annotated[dict[str, Error], Example({})] = field(default_factory=dict)
    """Why a task has no metrics."""
    warnings: Annotated[dict[str, list[TaskWarning]], Example({})] = field(default_factory=dict)
    provenance: Annotated[dict[str, dict[str, object]], Example({"pairs": {"device": "cpu"}})] = field(
        default_factory=dict
    )
    """Device, versions, host, seconds."""


class TaskOrigin(Document):
    """What the values of a task follow from: a later run takes them over where all of that is the same."""

    inputs: Annotated[dict[str, str], Example({"checkpoint": "9f2c…", "layout": "4c1a…", "plan": "77b0…"})]
    """Digests by name: of weights, model, layout, parameters, data, and what the task adds; the version of evalsvc."""
    content: Digest
    """Digest of the task's metrics, protocols, results per item and warnings."""
    reused_from: Annotated[str | None, Example(None)] = None
    """The result file that the values were taken over from; null: this run measured them."""


class ResultFile(ResultDocument):
    """The file that `evalsvc run --output` writes."""

    checkpoint: ResultCheckpoint
    suite: ResultSuite
    artifacts: Annotated[dict[str, list[dict[str, object]]], Example({"pairs": []})]
    """What is to be looked at, each with the path of a file next to the result."""
    origins: Annotated[dict[str, TaskOrigin], Example({})] = field(default_factory=dict)
    """What the values of each task follow from; a task without an origin is measured again by `--reuse`."""


class StoredCheckpoint(ResultCheckpoint):
    """A checkpoint of the service."""

    id: Id
    run: RunName
    step: Step
    variant: Variant


class CheckpointResult(ResultDocument):
    """What the service knows of a checkpoint, by the newest evaluation of each suite."""

    checkpoint: StoredCheckpoint
    suite: ResultSuite
    state: State
    """The worst of the evaluations' states."""
    evaluations: list[EvaluationSummary]
    artifacts: Annotated[dict[str, list[Artifact]], Example({"pairs": []})]
