"""The parameters of `alignment`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.spec.bounds import MAX_BATCH, Rows, Seed
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.task import Task


class Learning(BaseModel):
    """How image rows are trained; all other rows stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: DataPath | None = None
    """Pairs to train on [a random half of the task's own; the other half then measures]."""
    steps: int = Field(default=1000, ge=1, le=1_000_000)
    """Of Adam."""
    batch: int = Field(default=1024, ge=2, le=MAX_BATCH)
    """Pairs a step; all of them where there are fewer."""
    rate: float = Field(default=0.03, gt=0, le=10)
    """Adam's, for rows in units of the text rows' root mean square entry, and for the logarithm of the temperature."""
    seed: Seed = 0
    """Of the batches, and of the halves."""


class Alignment(Task):
    """Image rows against text rows of an embedding table, by pairs of captions and images."""

    kind: ClassVar[str] = "alignment"
    work: ClassVar[str] = "evalsvc.tasks.alignment.work:AlignmentWork"

    data: DataPath
    """Pairs, one a record: a JSONL file with `text_ids` or `text`, and `image_codes`, or a safetensors file. Records
    that lack one of both are left out and counted, and so are further captions of an image."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for records that hold `text`, and to show tokens [the layout's]."""
    limit: Rows | None = None
    """Use the first so many records only."""
    batch: int = Field(default=1024, ge=2, le=MAX_BATCH)
    """Pairs that are told apart from each other; all of them where there are fewer. What does not fill a batch is left
    out and counted."""
    table: Literal["input", "output"] = "input"
    """Whose rows: the input's embeddings or the output layer's."""
    neighbours: int = Field(default=5, ge=1, le=1000)
    """Nearest text tokens of an image token."""
    permutations: int = Field(default=999, ge=1, le=1_000_000)
    """Random pairings that the pairs are compared with."""
    seed: Seed = 0
    """Of the permutations, and of the batches where there are several."""
    learn: Learning | None = None
    """Also train the image rows, and measure them the same way [no]."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the checkpoint's weights; similarities are float64, and training is in float32."""
