"""Results: the document that `evalsvc run --output` writes and the service answers with, items, and completions."""

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


class Items(Document):
    """Results per item of an evaluation's succeeded tasks."""

    evaluation: Annotated[Id, Field(examples=[40])]
    state: Annotated[State, Field(examples=["succeeded"])]
    items: Annotated[
        dict[str, list[dict[str, object]]],
        Field(
            examples=[{"loss": [{"index": 0, "n_text": 31, "nll_text": 74.2, "within_text": 73.9, "image_mass": 0.02}]}]
        ),
    ]
    """Results by task, in the order of the data. The fields of a result depend on the kind of task."""


class Change(Document):
    """The difference between a completion and the completion at the previous step that was drawn the same way."""

    step: Step
    same: bool
    """Whether both completions have identical ids."""
    common_prefix: Count
    """Number of ids in the common prefix."""
    edit_distance: Count
    """Number of ids to insert, delete or replace to turn one completion into the other."""


class Completion(Document):
    """A completion of a prompt, with the base's completion. Fields of the base are null without a base."""

    index: Annotated[int, Field(examples=[0])] = 0
    prompt: Annotated[str, Field(examples=["cheese =>"])]
    way: Annotated[str, Field(examples=["greedy"])]
    """Seed that the completion was drawn with, or `greedy`."""
    protocol: Annotated[str | None, Field(examples=["35b02c7e9f5b2d10"])] = None
    """Id of the drawing protocol: completions with the same id are comparable."""
    text: Annotated[str, Field(examples=[" I love cheese"])] = ""
    ids: Annotated[list[int] | None, Field(examples=[[309, 2389, 12173]])] = None
    """Drawn ids, as rows of the table."""
    drawn: Annotated[int | None, Field(examples=[3])] = None
    """Number of ids in the completion."""
    image_ids: Annotated[int | None, Field(examples=[0])] = None
    """Number of image ids in the completion."""
    seq_rep_4: Annotated[float | None, Field(examples=[0.0])] = None
    """Share of 4-grams that repeat earlier ones."""
    distinct_1: Annotated[float | None, Field(examples=[1.0])] = None
    """Number of different ids / number of ids."""
    distinct_2: Annotated[float | None, Field(examples=[1.0])] = None
    """Number of different 2-grams / number of 2-grams."""
    ended: Annotated[int | None, Field(examples=[0])] = None
    """Whether the completion ended: 0 or 1; null if no id ends a text."""
    base: Annotated[str | None, Field(examples=[" fromage"])] = None
    """The base's completion of the prompt."""
    base_ids: Annotated[list[int] | None, Field(examples=[[1181, 382]])] = None
    same_as_base: Annotated[int | None, Field(examples=[0])] = None
    """Whether a greedy completion equals the base's: 0 or 1; null for seeded ones, which differ after any change."""
    base_nll: Annotated[float | None, Field(examples=[9.4])] = None
    """Loss of the base in nats, summed over the first `base_scored` text ids of the completion."""
    base_scored: Annotated[int | None, Field(examples=[3])] = None
    base_own_nll: Annotated[float | None, Field(examples=[2.1])] = None
    """Loss of the base on its own completion in nats, summed over `base_own_scored` ids."""
    base_own_scored: Annotated[int | None, Field(examples=[2])] = None
    previous: Change | None = None
    """Difference from the completion at the previous step; null at the first step."""


class StepCompletions(Document):
    """The completions of one checkpoint in one task."""

    step: Step
    variant: Variant
    task: Annotated[str, Field(examples=["completions"])]
    completions: list[Completion]


class Completions(Document):
    """Completions of fixed prompts by a run's current checkpoints, by step."""

    run: RunName
    steps: list[StepCompletions]
