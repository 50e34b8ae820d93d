"""Documents of runs."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, Digest, Id, RunName, Step, SuiteName, Time, Tokens, Uri, Variant
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
    """Every run, by name."""

    runs: list[RunSummary]


class PlannedSuite(Document):
    """A suite of a run's plan. It is due at steps that are multiples of `every`, from `first` to `last`."""

    suite: SuiteName
    every: Annotated[int, Example(500, minimum=1)]
    first: Annotated[Step | None, Example(None)] = None
    last: Annotated[Step | None, Example(None)] = None


class Plan(Document):
    """Which suites a run's checkpoints get."""

    suites: list[PlannedSuite]
    when_behind: Annotated[Literal["all", "newest"], Example("newest")] = "all"
    """`newest`: a checkpoint drops what older ones of its run still wait for by the plan."""


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


class Run(Document):
    """A training run, with its checkpoints by step."""

    name: RunName
    created_at: Time
    plan: Plan
    base: Base
    checkpoints: list[RunCheckpoint]
    """Those that were not replaced."""


class Deleted(Document):
    """How much is gone with a run."""

    run: Annotated[RunName, Example("t2i-1b-broken")]
    checkpoints: Count
    evaluations: Annotated[Count, Example(18)]
    values: Annotated[Count, Example(180)]
    artifacts: Annotated[Count, Example(27)]
    freed_bytes: Annotated[Count, Example(40_213_000)]
