"""Documents of runs."""

from __future__ import annotations

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


class RunSummary(Document):
    """A run, and how much there is of it."""

    name: RunName
    checkpoints: Count
    """Checkpoints that were not replaced."""
    last_step: Step | None
    """The highest step of a checkpoint."""
    values: Annotated[Count, Example(180)]
    """Values of metrics in the history."""
    created_at: Time


class Runs(Document):
    """A page of the runs, by name."""

    runs: list[RunSummary]
    next_cursor: NextCursor = None
    """The cursor of the next page; null on the last page."""


class PlannedSuite(Document):
    """A suite of a run's plan. It is due at steps that are multiples of `every`, from `first` to `last`."""

    suite: SuiteName
    every: Annotated[int, Example(500, minimum=1)]
    first: Annotated[Step | None, Example(None)] = None
    last: Annotated[Step | None, Example(None)] = None


WhenBehind = Literal["all", "newest", "refuse"]


class Plan(Document):
    """Which suites a run's checkpoints get."""

    suites: list[PlannedSuite]
    when_behind: Annotated[WhenBehind, Example("newest")] = "all"
    """`newest`: a checkpoint drops what older ones of its run still wait for by the plan. `refuse`: a checkpoint is
    refused (429) while `at_most` other steps of its run have evaluations that are not over."""
    at_most: Annotated[int, Example(1, minimum=1)] = 1
    """How many steps of the run may have evaluations that are not over, where `when_behind` is `refuse`."""


class Base(Document):
    """What a run's checkpoints are compared with."""

    run: Annotated[RunName, Example("text-1b")]
    step: Annotated[Step, Example(240_000)]
    variant: Variant
    named: Annotated[bool, Example(True)]
    """Whether somebody named the base; until then it is the run's own step 0."""
    checkpoint: Annotated[Id | None, Example(3)]
    """The checkpoint that the base is now; null: it was not posted yet."""


class RunCheckpoint(Document):
    """A checkpoint in the document of its run."""

    id: Annotated[Id, Example(17)]
    step: Step
    variant: Variant
    uri: Uri
    sha256: Digest | None
    tokens_seen: Tokens | None
    created_at: Time
    evaluations: list[EvaluationSummary]
    """The newest 20 evaluations of the checkpoint, the oldest of them first."""


class ListedCheckpoint(RunCheckpoint):
    """A checkpoint in a list of checkpoints of any run."""

    run: RunName


class Checkpoints(Document):
    """A page of the checkpoints that were not replaced, by run, step and variant."""

    checkpoints: list[ListedCheckpoint]
    next_cursor: NextCursor = None
    """The cursor of the next page; null on the last page."""


class Run(Document):
    """A training run, with its last checkpoints by step."""

    name: RunName
    created_at: Time
    plan: Plan
    base: Base
    checkpoints: list[RunCheckpoint]
    """The 500 checkpoints of the highest steps, without replaced ones. `GET /v1/checkpoints?run=` lists all."""
    checkpoint_count: Count = 0
    """The number of all checkpoints of the run, without replaced ones."""


class Deleted(Document):
    """How much is gone with a run."""

    run: Annotated[RunName, Example("t2i-1b-broken")]
    checkpoints: Count
    evaluations: Annotated[Count, Example(18)]
    values: Annotated[Count, Example(180)]
    artifacts: Annotated[Count, Example(27)]
    freed_bytes: Annotated[Count, Example(40_213_000)]
