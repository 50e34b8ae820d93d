"""Documents of runs and their checkpoints, and of suites."""

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
    Step,
    SuiteName,
    Text,
    Time,
    Tokens,
    Uri,
    Variant,
)
from evalsvc.spec.documents.results import Error, EvaluationSummary
from evalsvc.spec.names import MAX_STEP


class Base(Document):
    """The checkpoint that a run's checkpoints are compared with."""

    run: Annotated[RunName, Field(examples=["text-1b"])]
    step: Annotated[Step, Field(examples=[240_000])]
    variant: Variant
    named: Annotated[bool, Field(examples=[True])]
    """Whether the base was set explicitly; otherwise the base is the run's own step 0."""
    checkpoint: Annotated[Id | None, Field(examples=[3])]
    """Id of the base's checkpoint; null if the checkpoint has not been posted yet."""


class RunSummary(Document):
    """A run, with counts of its checkpoints, values and evaluations."""

    name: RunName
    checkpoints: Count
    """Number of current checkpoints, without replaced ones."""
    last_step: Step | None
    """Highest step of a current checkpoint; null if the run has no checkpoint."""
    values: Annotated[Count, Field(examples=[180])]
    """Number of metric values in the history."""
    created_at: Time
    last_value_step: Annotated[Step | None, Field(examples=[2500])] = None
    """Highest step with a value, measured or imported; null if the run has no value."""
    waiting: Annotated[Count, Field(examples=[2])] = 0
    """Number of current checkpoints with an evaluation that is queued or running."""
    failed: Annotated[Count, Field(examples=[1])] = 0
    """Number of current checkpoints with a suite of which the newest evaluation failed, wholly or partly, and none
    succeeded."""
    tags: Annotated[dict[str, str], Field(examples=[{"seed": "1"}])] = {}
    """Tags of the current checkpoint with the highest step; of several variants, the tags of `raw`."""
    base: Base | None = None
    """The checkpoint that the run's checkpoints are compared with; null in answers of an older service."""


class Runs(Document):
    """A page of the runs, sorted by name."""

    runs: list[RunSummary]
    next_cursor: NextCursor = None


PlannedStep = Annotated[int, Field(ge=0, le=MAX_STEP)]

MAX_WAITING = 1000
"""The most steps that may wait for their evaluations while a plan admits new checkpoints."""


class PlannedSuite(Document):
    """A suite of a run's plan."""

    suite: SuiteName
    every: Annotated[int, Field(ge=1, le=MAX_STEP, examples=[500])]
    """The suite is due at steps that are multiples of this number."""
    first: Annotated[PlannedStep | None, Field(examples=[None])] = None
    """The first step at which the suite can be due."""
    last: Annotated[PlannedStep | None, Field(examples=[None])] = None
    """The last step at which the suite can be due."""


WhenBehind = Literal["all", "newest", "refuse"]


class Plan(Document):
    """The suites that new checkpoints of a run are evaluated with."""

    suites: list[PlannedSuite]
    when_behind: Annotated[WhenBehind, Field(examples=["newest"])] = "all"
    """Effect of a new checkpoint on queued evaluations of older checkpoints by the plan: `all` keeps them,
    `newest` cancels them, and `refuse` keeps them and refuses the new checkpoint (429, with `Retry-After`) while
    `at_most` other steps of the run have unfinished evaluations."""
    at_most: Annotated[int, Field(ge=1, le=MAX_WAITING, examples=[1])] = 1
    """Maximum number of other steps with unfinished evaluations, for `when_behind: refuse`."""


Images = Annotated[bool, Field(examples=[False])]
"""Whether the checkpoint is images that another program sampled, and not weights."""


class RunCheckpoint(Document):
    """A checkpoint as its run lists it."""

    id: Annotated[Id, Field(examples=[17])]
    step: Step
    variant: Variant
    uri: Uri
    sha256: Digest | None
    images: Images = False
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

    run: Annotated[RunName, Field(examples=["t2i-1b-broken"])]
    checkpoints: Count
    evaluations: Annotated[Count, Field(examples=[18])]
    values: Annotated[Count, Field(examples=[180])]
    artifacts: Annotated[Count, Field(examples=[27])]
    freed_bytes: Annotated[Count, Field(examples=[40_213_000])]


class Parent(Document):
    """A checkpoint that a virtual checkpoint is computed from."""

    name: Annotated[str, Field(examples=["t2i-1b-pretrained@2000"])]
    """Name of the parent in the expression."""
    checkpoint: Annotated[Id, Field(examples=[13])]
    """Id of the parent."""
    sha256: Digest | None
    replaced_at: Annotated[Time | None, Field(examples=[None])]


class Checkpoint(Document):
    """A run's weights at a step."""

    id: Annotated[Id, Field(examples=[17])]
    run: RunName
    step: Step
    variant: Variant
    """Name of one of several sets of weights at the same step, such as an average."""
    uri: Uri
    """Location of the file, or the expression of a virtual checkpoint."""
    sha256: Annotated[Digest | None, Field(examples=[None])]
    """Digest of the weights; null until it was posted or a worker has read the file."""
    images: Images = False
    model: Annotated[Open | None, Field(examples=[None])]
    layout: Annotated[Open | None, Field(examples=[None])]
    tokens_seen: Tokens | None
    tags: Annotated[dict[str, str], Field(examples=[{"lr": "3e-4"}])]
    spool: Literal["none", "link", "copy"]
    spool_state: Annotated[Literal["copying", "ready", "failed", "released"] | None, Field(examples=[None])]
    in_use: Annotated[bool, Field(examples=[True])]
    """Whether the posted file is still needed. Do not delete the file while this is true."""
    created_at: Time
    replaced_at: Annotated[Time | None, Field(examples=[None])]
    """Time at which a post replaced the checkpoint; null if the checkpoint is current."""
    parents: Annotated[list[Parent], Field(examples=[[]])]
    """Checkpoints that a virtual checkpoint is computed from."""
    evaluations: list[EvaluationSummary]


class Posted(Document):
    """A posted checkpoint, with one evaluation per suite."""

    checkpoint: Checkpoint
    evaluations: list[EvaluationSummary]
    note: Annotated[str | None, Field(examples=[None])] = None
    """Reason why the post evaluates nothing; null if the post has evaluations."""


class DeletedCheckpoint(Document):
    """Counts of what was deleted with a checkpoint."""

    checkpoint: Annotated[Id, Field(examples=[17])]
    """Id of the checkpoint, which is never reused."""
    run: RunName
    step: Step
    variant: Variant
    evaluations: Annotated[Count, Field(examples=[2])]
    values: Annotated[Count, Field(examples=[18])]
    """Number of history values that the evaluations measured."""
    artifacts: Annotated[Count, Field(examples=[3])]
    freed_bytes: Annotated[Count, Field(examples=[4_021_300])]


Source = Annotated[Literal["put", "folder", "shipped"], Field(examples=["shipped"])]
"""Origin of a suite: a request, a file in the suites folder, or evalsvc itself."""

Shadowed = Annotated[Literal["folder", "shipped"] | None, Field(examples=[None])]

Tasks = Annotated[
    list[Open], Field(examples=[[{"kind": "loss", "name": "loss", "data": "datasets:heldout_text.jsonl"}]])
]
HeadlineMetrics = Annotated[list[str], Field(examples=[["loss/image", "loss/text"]])]


class Suite(Document):
    """A suite, with its tasks and all their parameters."""

    name: SuiteName
    description: Text
    tasks: Tasks
    """Tasks, each with `kind`, `name` and the parameters of its kind."""
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    source: Source
    headline: HeadlineMetrics = []
    """Headline metrics, most important first; empty if the suite has none."""
    shadows: Shadowed = None
    """Origin of another suite with the same name, which this suite hides; null if there is none."""


class SuiteSummary(Document):
    """A suite that can be evaluated."""

    name: SuiteName
    source: Source
    description: Text
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    tasks: Annotated[list[str], Field(examples=[["loss"]])]
    """Names of the tasks."""
    headline: HeadlineMetrics = []
    """Headline metrics, most important first; empty if the suite has none."""
    shadows: Shadowed = None
    """Origin of another suite with the same name, which this suite hides; null if there is none."""


class BrokenSuite(Document):
    """A suite file that cannot be read, with the error."""

    name: SuiteName
    source: Source
    error: Error


class Suites(Document):
    """A page of the suites, sorted by name."""

    suites: list[SuiteSummary | BrokenSuite]
    next_cursor: NextCursor = None


class EvaluatedSuite(Document):
    """The suite of an evaluation, as it was when the evaluation began."""

    evaluation: Id
    name: SuiteName
    tasks: Tasks
    """Tasks, each with `kind`, `name` and the parameters of its kind."""
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    current_digest: Annotated[Digest | None, Field(examples=["4f0c…"])]
    """Digest of the suite that has the name now, which differs if the suite was replaced; null if it was deleted or
    cannot be read."""


class DeletedSuite(Document):
    """A deleted suite."""

    name: Annotated[SuiteName, Field(examples=["captions"])]
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    uncovered: Shadowed
    """Origin of the suite that has the name from now on; null if there is none."""
