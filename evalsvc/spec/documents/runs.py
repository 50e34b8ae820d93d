"""Documents of runs."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import (
    Count,
    Digest,
    Id,
    NextCursor,
    RunName,
    Step,
    SuiteName,
    Time,
    Tokens,
    Uri,
    Variant,
)
from evalsvc.spec.documents.results import EvaluationSummary


class Base(Document):
    """The checkpoint that a run's checkpoints are compared with."""

    run: Annotated[RunName, Example("text-1b")]
    step: Annotated[Step, Example(240_000)]
    variant: Variant
    named: Annotated[bool, Example(True)]
    """Whether the base was set explicitly; otherwise the base is the run's own step 0."""
    checkpoint: Annotated[Id | None, Example(3)]
    """Id of the base's checkpoint; null if the checkpoint has not been posted yet."""


class RunSummary(Document):
    """A run, with counts of its checkpoints, values and evaluations."""

    name: RunName
    checkpoints: Count
    """Number of current checkpoints, without replaced ones."""
    last_step: Step | None
    """Highest step of a current checkpoint; null if the run has no checkpoint."""
    values: Annotated[Count, Example(180)]
    """Number of metric values in the history."""
    created_at: Time
    last_value_step: Annotated[Step | None, Example(2500)] = None
    """Highest step with a value, measured or imported; null if the run has no value."""
    waiting: Annotated[Count, Example(2)] = 0
    """Number of current checkpoints with an evaluation that is queued or running."""
    failed: Annotated[Count, Example(1)] = 0
    """Number of current checkpoints with a suite of which the newest evaluation failed, wholly or partly, and none
    succeeded."""
    tags: Annotated[dict[str, str], Example({"seed": "1"})] = field(default_factory=dict)
    """Tags of the current checkpoint with the highest step; of several variants, the tags of `raw`."""
    base: Base | None = None
    """The checkpoint that the run's checkpoints are compared with; null in answers of an older service."""


class Runs(Document):
    """A page of the runs, sorted by name."""

    runs: list[RunSummary]
    next_cursor: NextCursor = None
    """Cursor of the next page; null on the last page."""


class PlannedSuite(Document):
    """A suite of a run's plan. The suite is due at steps that are multiples of `every`, from `first` to `last`."""

    suite: SuiteName
    every: Annotated[int, Example(500, minimum=1)]
    first: Annotated[Step | None, Example(None)] = None
    last: Annotated[Step | None, Example(None)] = None


WhenBehind = Literal["all", "newest", "refuse"]


class Plan(Document):
    """The suites that new checkpoints of a run are evaluated with."""

    suites: list[PlannedSuite]
    when_behind: Annotated[WhenBehind, Example("newest")] = "all"
    """Effect of a new checkpoint on queued evaluations of older checkpoints by the plan: `all` keeps them,
    `newest` cancels them, and `refuse` keeps them and refuses the new checkpoint (429) while `at_most` other steps of
    the run have unfinished evaluations."""
    at_most: Annotated[int, Example(1, minimum=1)] = 1
    """Maximum number of other steps with unfinished evaluations, for `when_behind: refuse`."""


class RunCheckpoint(Document):
    """A checkpoint as its run lists it."""

    id: Annotated[Id, Example(17)]
    step: Step
    variant: Variant
    uri: Uri
    sha256: Digest | None
    tokens_seen: Tokens | None
    created_at: Time
    evaluations: list[EvaluationSummary]
    """The newest 20 evaluations of the checkpoint, oldest first."""


class ListedCheckpoint(RunCheckpoint):
    """A checkpoint in a list of several runs."""

    run: RunName


class Checkpoints(Document):
    """A page of the current checkpoints, sorted by run, step and variant."""

    checkpoints: list[ListedCheckpoint]
    next_cursor: NextCursor = None
    """Cursor of the next page; null on the last page."""


class Run(Document):
    """A training run, with its last checkpoints sorted by step."""

    name: RunName
    created_at: Time
    plan: Plan
    base: Base
    checkpoints: list[RunCheckpoint]
    """The 500 current checkpoints with the highest steps. `GET /v1/checkpoints?run=` lists all."""
    checkpoint_count: Count = 0
    """Number of all current checkpoints of the run."""


class Deleted(Document):
    """Counts of what was deleted with a run."""

    run: Annotated[RunName, Example("t2i-1b-broken")]
    checkpoints: Count
    evaluations: Annotated[Count, Example(18)]
    values: Annotated[Count, Example(180)]
    artifacts: Annotated[Count, Example(27)]
    freed_bytes: Annotated[Count, Example(40_213_000)]
