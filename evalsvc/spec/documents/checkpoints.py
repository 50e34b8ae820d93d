"""Documents of checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, Digest, Id, Open, RunName, Step, Time, Tokens, Uri, Variant
from evalsvc.spec.documents.results import EvaluationSummary


class Parent(Document):
    """A checkpoint that a virtual checkpoint is computed from."""

    name: Annotated[str, Example("t2i-1b-pretrained@2000")]
    """Name of the parent in the expression."""
    checkpoint: Annotated[Id, Example(13)]
    """Id of the parent."""
    sha256: Digest | None
    replaced_at: Annotated[Time | None, Example(None)]


class Checkpoint(Document):
    """A run's weights at a step."""

    id: Annotated[Id, Example(17)]
    run: RunName
    step: Step
    variant: Variant
    """Name of one of several sets of weights at the same step, such as an average."""
    uri: Uri
    """Location of the file, or the expression of a virtual checkpoint."""
    sha256: Annotated[Digest | None, Example(None)]
    """Digest of the weights; null until it was posted or a worker has read the file."""
    model: Annotated[Open | None, Example(None)]
    layout: Annotated[Open | None, Example(None)]
    tokens_seen: Tokens | None
    tags: Annotated[dict[str, str], Example({"lr": "3e-4"})]
    spool: Literal["none", "link", "copy"]
    spool_state: Annotated[Literal["copying", "ready", "failed", "released"] | None, Example(None)]
    in_use: Annotated[bool, Example(True)]
    """Whether the posted file is still needed. Do not delete the file while this is true."""
    created_at: Time
    replaced_at: Annotated[Time | None, Example(None)]
    """Time at which a post replaced the checkpoint; null if the checkpoint is current."""
    parents: Annotated[list[Parent], Example([])]
    """Checkpoints that a virtual checkpoint is computed from."""
    evaluations: list[EvaluationSummary]


class Posted(Document):
    """A posted checkpoint, with one evaluation per suite."""

    checkpoint: Checkpoint
    evaluations: list[EvaluationSummary]
    note: Annotated[str | None, Example(None)] = None
    """Reason why the post evaluates nothing; null if the post has evaluations."""


class DeletedCheckpoint(Document):
    """Counts of what was deleted with a checkpoint."""

    checkpoint: Annotated[Id, Example(17)]
    """Id of the checkpoint, which is never reused."""
    run: RunName
    step: Step
    variant: Variant
    evaluations: Annotated[Count, Example(2)]
    values: Annotated[Count, Example(18)]
    """Number of history values that the evaluations measured."""
    artifacts: Annotated[Count, Example(3)]
    freed_bytes: Annotated[Count, Example(4_021_300)]
