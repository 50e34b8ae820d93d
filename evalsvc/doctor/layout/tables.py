"""What the model's tables say of a candidate, apart from any loss: printed next to the verdict and no part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.candidates import Candidate

if TYPE_CHECKING:
    from evalsvc.metrics.table_rows import RowStatistics

NEAR = 1
"""Rows by which a change point may miss a border."""


@dataclass(frozen=True)
class TableEvidence:
    """How a candidate fits the tables."""

    borders: tuple[int, ...]
    """Where its text and image blocks begin and end within the table."""
    seen: tuple[int, ...]
    """Those of them at which the rows' statistics change."""
    targets: int
    """Different rows that the data have as targets."""
    cold: int
    """Those of them that training never had as targets, by their direction: few of the right layout."""


def table_evidence(candidate: Candidate, records: Sequence[Record], statistics: RowStatistics) -> TableEvidence:
    """Hold a candidate against the tables."""
    layout = candidate.layout
    blocks = [block for block in (layout.text_ids, layout.image_range) if block is not None]
    borders = sorted({edge for block in blocks for edge in (block.start, block.stop)} - {0, layout.rows})
    changes = [border.row for border in statistics.borders]
    seen = [edge for edge in borders if any(abs(row - edge) <= NEAR for row in changes)]
    targets = {row for sequence in candidate.sequences(records) for row in sequence[1:]}
    return TableEvidence(tuple(borders), tuple(seen), len(targets), len(targets & set(statistics.cold)))
