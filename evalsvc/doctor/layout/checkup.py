"""Finding the layout of one checkpoint: read its table and the pairs, try every layout, judge the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import fetched
from evalsvc.config import Settings
from evalsvc.data.tokens import Record, read_tokens
from evalsvc.doctor.layout.candidates import Candidate, Dropped, Sizes, check_pairs, find_sizes, propose
from evalsvc.doctor.layout.search import Search
from evalsvc.doctor.layout.tables import TableEvidence, table_evidence
from evalsvc.doctor.layout.verdict import Rule, Verdict, judge
from evalsvc.errors import InvalidData
from evalsvc.spec.layout import VocabularyLayout

if TYPE_CHECKING:
    from evalsvc.metrics.table_rows import RowStatistics


@dataclass(frozen=True)
class Question:
    """The input of a search for a layout."""

    checkpoint: CheckpointRef
    pairs: str
    """Path of token data with text and image codes in every record."""
    text_sizes: Sequence[int] = ()
    """Numbers of text rows to try; inferred if empty."""
    codebook_size: int | None = None
    """Number of codes; inferred if None."""
    limit: int = 16
    """Number of pairs to use, from the beginning."""
    own: Mapping[str, VocabularyLayout] = field(default_factory=dict)
    """Layouts to try in addition to the presets, by name."""
    tokenizer: str | None = None
    """Path of the `tokenizer.json`, for pairs that hold `text`."""


@dataclass(frozen=True)
class Checkup:
    """The result of a search for a layout."""

    checkpoint: str
    pairs: str
    rows: int
    """Number of rows of the model's table."""
    sizes: Sizes
    dropped: Sequence[Dropped]
    verdict: Verdict
    statistics: RowStatistics
    records: Sequence[Record]

    def tables_of(self, candidate: Candidate) -> TableEvidence:
        """Return how a candidate fits the tables."""
        return table_evidence(candidate, self.records, self.statistics)


def examine(question: Question, settings: Settings, report: Callable[[int], None]) -> Checkup:
    """Find the layout of a checkpoint. `report` gets the number of layouts scored so far.

    Raises InvalidData if a record is not a pair, a file is broken, or no candidate fits table and data; otherwise the
    errors of evaluating the checkpoint.
    """
    # Imported here because both need torch, and the rest of this module does not.
    from evalsvc.tasks.loss.layout_evidence import ModelEvidence
    from evalsvc.worker.context import ShardContext

    records = read_tokens(question.pairs, question.tokenizer, "none").records[: question.limit]
    check_pairs(question.pairs, records)
    with fetched([question.checkpoint], settings, lambda _: None) as (checkpoint,):
        context = ShardContext(checkpoint, settings, lambda _: None)
        model = context.model(dtype="float32", rotary_inv_freq_dtype="auto")
    rows = model.config.vocab_size
    sizes = _sizes(question, rows, records)
    candidates, dropped = propose(rows, records, sizes, question.own)
    if not candidates:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in dropped)
        raise InvalidData(f"{question.pairs}: no layout fits the model's {rows} rows and these pairs; {reasons}")
    witness = ModelEvidence(context, model)
    search = Search(witness, records, report)
    search.run(candidates)
    return Checkup(
        question.checkpoint.label,
        question.pairs,
        rows,
        sizes,
        dropped,
        judge(search, Rule()),
        witness.rows(),
        records,
    )


def _sizes(question: Question, rows: int, records: Sequence[Record]) -> Sizes:
    try:
        return find_sizes(rows, records, question.text_sizes, question.codebook_size)
    except InvalidData as error:
        raise InvalidData(f"{question.pairs} {error.message}") from None
