"""The parameters of `alignment`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from evalsvc.spec.bounds import MAX_BATCH, Rows, Seed
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.task import Task


class Alignment(Task):
    """Agreement of image rows and text rows in an embedding table, on pairs of captions and images."""

    kind: ClassVar[str] = "alignment"
    work: ClassVar[str] = "evalsvc.tasks.alignment.work:AlignmentWork"
    needs: ClassVar[str] = "pairs of a caption and the codes of its image"
    example: ClassVar[Mapping[str, Any]] = {"data": "/path/to/pairs.jsonl"}

    data: DataPath
    """Pairs, one per record: a JSONL file with `text_ids` or `text`, and `image_codes`, or a safetensors file. Records
    without text or without codes, and further captions of an image, are skipped and counted."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for records that hold `text`, and to show tokens [the layout's]."""
    limit: Rows | None = None
    """Number of records to use, from the beginning [all]."""
    batch: int = Field(default=1024, ge=2, le=MAX_BATCH)
    """Number of pairs among which each image must find its text; all pairs if there are fewer. Pairs that do not fill a
    batch are skipped and counted."""
    table: Literal["input", "output"] = "input"
    """Table whose rows are compared: the input embeddings or the output layer."""
    neighbours: int = Field(default=5, ge=1, le=1000)
    """Number of nearest text tokens of each image token."""
    permutations: int = Field(default=999, ge=1, le=1_000_000)
    """Number of random pairings that the actual pairs are compared with."""
    seed: Seed = 0
    """Seed of the permutations, and of the batches if there are several."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the checkpoint's weights. Similarities are float64."""
