"""The shards of the alignment task, and what each of them leaves for the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from evalsvc.metrics.contrastive import PermutationTest, Plateau
from evalsvc.tasks.task import Shard


@dataclass(frozen=True, kw_only=True)
class AlignmentShard(Shard):
    """The table of the checkpoint, or the one with trained image rows."""

    part: Literal["table", "learned"]
    digest: str
    """Of the data."""
    candidates: int
    """Text rows that stand for a token: tables are padded."""
    records: int
    complete: int
    """Records with both text and image."""
    pairs: int
    """Records of different images."""
    protocol: Mapping[str, Any]

    @property
    def prefix(self) -> str:
        """With what the names of the part's metrics begin."""
        return "" if self.part == "table" else "learned_"


@dataclass(frozen=True, kw_only=True)
class OverlapParts:
    """Squared lengths of the image rows in use, from their mean."""

    inside: Sequence[float]
    """Within the subspace of the text rows."""
    whole: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class TableMeasures:
    """What is measured of a table and batches of pairs."""

    places: Sequence[int]
    """Index of each pair's record in the data."""
    columns: Mapping[str, Sequence[float]]
    """Numbers by pair, in the order of `places`; their means are those of `metrics.contrastive`."""
    chance: Mapping[str, float]
    hit_chance: Mapping[str, float]
    floor: float
    """Smallest loss that there can be, where equal texts belong to several images."""
    fitted_scale: float
    """1 / temperature that makes the loss smallest."""
    tests: Mapping[str, PermutationTest]
    overlap: OverlapParts
    overlap_chance: float


@dataclass(frozen=True, kw_only=True)
class TableOutput(TableMeasures):
    """What a shard leaves."""

    nearest_tokens: str
    """Page of the text tokens that are nearest to image tokens."""


@dataclass(frozen=True, kw_only=True)
class LearnedOutput(TableOutput):
    """What the shard leaves that trains the image rows."""

    training_pairs: int
    pairs_in_both: int
    """Pairs that are trained on and measured."""
    trained_codes: int
    scale: float
    """1 / temperature at the end of the training."""
    plateau: Plateau
    losses: Sequence[float]
    """Of each step."""
    scales: Sequence[float]
    """1 / temperature at each step."""
    image_rows: bytes
    """See `models.image_rows`."""


AlignmentOutput: TypeAlias = TableOutput | LearnedOutput
