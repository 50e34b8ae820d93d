"""The shards of the alignment task, and their outputs for the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from evalsvc.metrics.contrastive import PermutationTest, Plateau
from evalsvc.tasks.task import Shard


@dataclass(frozen=True, kw_only=True)
class AlignmentShard(Shard):
    """A shard for the checkpoint's own table, or for the table with trained image rows."""

    part: Literal["table", "learned"]
    digest: str
    """Digest of the data."""
    candidates: int
    """Number of text rows that stand for a token; the other rows are padding."""
    records: int
    complete: int
    """Number of records with both text and image."""
    pairs: int
    """Number of records of different images."""
    protocol: Mapping[str, Any]

    @property
    def prefix(self) -> str:
        """Return the prefix of the part's metric names."""
        return "" if self.part == "table" else "learned_"


@dataclass(frozen=True, kw_only=True)
class OverlapParts:
    """Squared distances of the image rows in use from their mean."""

    inside: Sequence[float]
    """Squared lengths within the subspace of the text rows."""
    whole: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class TableMeasures:
    """Measures of a table on batches of pairs."""

    places: Sequence[int]
    """Index of each pair's record in the data."""
    columns: Mapping[str, Sequence[float]]
    """Numbers per pair, in the order of `places`; their means are those of `metrics.contrastive`."""
    chance: Mapping[str, float]
    hit_chance: Mapping[str, float]
    floor: float
    """Smallest possible loss, where equal texts belong to several images."""
    fitted_scale: float
    """1 / temperature that minimises the loss."""
    tests: Mapping[str, PermutationTest]
    overlap: OverlapParts
    overlap_chance: float


@dataclass(frozen=True, kw_only=True)
class TableOutput(TableMeasures):
    """The output of a shard."""

    nearest_tokens: str
    """Page of the text tokens nearest to image tokens."""


@dataclass(frozen=True, kw_only=True)
class LearnedOutput(TableOutput):
    """The output of the shard that trains the image rows."""

    training_pairs: int
    pairs_in_both: int
    """Number of pairs in both the training data and the measured data."""
    trained_codes: int
    scale: float
    """1 / temperature at the end of the training."""
    plateau: Plateau
    losses: Sequence[float]
    """Loss of each step."""
    scales: Sequence[float]
    """1 / temperature at each step."""
    image_rows: bytes
    """Trained rows, see `models.image_rows`."""


AlignmentOutput: TypeAlias = TableOutput | LearnedOutput
