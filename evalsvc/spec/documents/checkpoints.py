"""Documents of checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, Digest, Id, Open, RunName, Step, Time, Tokens, Uri, Variant
from evalsvc.spec.documents.results import EvaluationSummary


class Parent(Document):
    """A checkpoint that a virtual one is made of."""

    name: Annotated[str, Example("t2i-1b-pretrained@2000")]
    """As expressions name the checkpoint."""
    checkpoint: Annotated[Id, Example(13)]
    """The checkpoint's id."""
    sha256: Digest | None
    replaced_at: Annotated[Time | None, Example(None)]


class Checkpoint(Document):
    """A run's weights at a step, as they were posted."""

    id: Annotated[Id, Example(17)]
    run: RunName
    step: Step
    variant: Variant
    """Which weights of the step."""
    uri: Uri
    """The file, or the expression of a virtual checkpoint."""
    sha256: Annotated[Digest | None, Example(None)]
    """Null until a worker has read the file, unless it was posted."""
    model: Annotated[Open | None, Example(None)]
    layout: Annotated[Open | None, Example(None)]
    tokens_seen: Tokens | None
    tags: Annotated[dict[str, str], Example({"lr": "3e-4"})]
    spool: Literal["none", "link", "copy"]
    spool_state: Annotated[Literal["copying", "ready", "failed", "released"] | None, Example(None)]
    in_use: Annotated[bool, Example(True)]
    """Whether the posted file is still needed."""
    created_at: Time
    replaced_at: Annotated[Time | None, Example(None)]
    """When another file took this one's place."""
    parents: Annotated[list[Parent], Example([])]
    """What a virtual checkpoint is made of."""
    evaluations: list[EvaluationSummary]


class Posted(Document):
    """A checkpoint that was posted, and one evaluation a suite."""

    checkpoint: Checkpoint
    evaluations: list[EvaluationSummary]


class DeletedCheckpoint(Document):
    """How much was deleted with a checkpoint."""

    checkpoint: Annotated[Id, Example(17)]
    """The checkpoint's id, which no other checkpoint gets."""
    run: RunName
    step: Step
    variant: Variant
    evaluations: Annotated[Count, Example(2)]
    values: Annotated[Count, Example(18)]
    """Values of the history that the evaluations measured."""
    artifacts: Annotated[Count, Example(3)]
    freed_bytes: Annotated[Count, Example(4_021_300)]
