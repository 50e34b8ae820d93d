"""Evidence of the model's tables for a candidate, independent of losses: shown next to the verdict, not part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalsvc.data.tokens import Record
from evalsvc.doctor.layout.candidates import Candidate

if TYPE_CHECKING:
    from evalsvc.metrics.table_rows import RowStatistics

NEAR = 1
"""Number of rows by which a change point may miss a border."""


@dataclass(frozen=True)
class TableEvidence:
    """Evidence of the tables for a candidate."""

    borders: tuple[int, ...]
    """Rows at which text and image blocks begin and end within the table."""
    seen: tuple[int, ...]
    """Borders at which the rows' statistics change."""
    targets: int
    """Number of distinct target rows in the data."""
    cold: int
    """Number of target rows that were never targets in training, by their direction; small for the right layout."""


def table_evidence(candidate: Candidate, records: Sequence[Record], statistics: RowStatistics) -> TableEvidence:
    """Compare a candidate with the statistics of the tables."""
    layout = candidate.layout
    blocks = [block for block in (layout.text_ids, layout.image_range) if block is not None]
    borders = sorted({edge for block in blocks for edge in (block.start, block.stop)} - {0, layout.rows})
    changes = [border.row for border in statistics.borders]
    seen = [edge for edge in borders if any(abs(row - edge) <= NEAR for row in changes)]
    targets = {row for sequence in candidate.sequences(records) for row in sequence[1:]}
    return TableEvidence(tuple(borders), tuple(seen), len(targets), len(targets & set(statistics.cold)))
