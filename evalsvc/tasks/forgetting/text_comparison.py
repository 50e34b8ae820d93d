"""Comparing two models on one text, token by token: the part of the forgetting task that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.metrics.token_loss import chunk_rows, divergences, token_losses
from evalsvc.models.language_model import LanguageModel, nonfinite_cause
from evalsvc.scoring.scorer import token_batches
from evalsvc.spec.layout import VocabularyLayout

OWN, BASE = 0, 1


@dataclass(frozen=True)
class Side:
    label: str
    model: LanguageModel
    layout: VocabularyLayout
    device: str


@dataclass(frozen=True)
class Passage:
    """The part of one text that both models predict."""

    name: str
    targets: Sequence[int]
    """Consecutive ids of the tokenizer to predict."""
    first: int
    cut: bool
    inputs: tuple[Sequence[int], Sequence[int]]
    """Inputs of checkpoint and base, as rows of their tables: all ids up to the one before the last target."""


@dataclass(frozen=True)
class TargetSums:
    """Sums over the targets of a text; losses and divergences are in nats."""

    nll: float
    within: float
    image_mass: float
    base_nll: float
    base_within: float
    kl: float
    kl_within: float
    top1: float
    """Number of targets for which both models have the same likeliest id."""


COLUMNS = tuple(field.name for field in fields(TargetSums))
NLL, BASE_NLL = map(COLUMNS.index, ("nll", "base_nll"))


@dataclass(frozen=True)
class ComparedText:
    tokens: int
    sums: TargetSums
    late: tuple[float, float] | None
    """Loss at the later of two positions minus that at the earlier one, of both models; None if the text is shorter."""


@dataclass(frozen=True)
class Comparison:
    texts: Sequence[ComparedText]
    cut: int


def passages(
    layout: VocabularyLayout,
    base: VocabularyLayout,
    texts: Sequence[Sequence[int]],  # ids of the tokenizer
    names: Sequence[str],
    max_length: int,
    in_template: bool,
) -> list[Passage]:
    """Return the ids of each text that have an id before them in both layouts. `in_template` is as in
    `VocabularyLayout.sequence`; inputs have at most `max_length` ids."""
    comparable = []
    for ids, name in zip(texts, names, strict=True):
        try:
            sequences = [each.sequence(ids, None, in_template) for each in (layout, base)]
        except InvalidData as error:
            raise InvalidData(f"{name} {error.message}") from None
        before = [each.before_text(in_template) for each in (layout, base)]
        first = 0 if all(before) else 1
        stop = min(len(ids) - max(sequence.cut for sequence in sequences), max_length + 1 - max(before))
        targets = ids[first : max(first, stop)]
        own, other = (
            sequence.ids[: place + stop - 1] if targets else []
            for sequence, place in zip(sequences, before, strict=True)
        )
        comparable.append(Passage(name, targets, first, stop < len(ids), (own, other)))
    return comparable


def compare(
    checkpoint: Side,
    base: Side,
    text_passages: Sequence[Passage],
    positions: tuple[int, int],
    batch_tokens: int,
    report: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Run both models on every passage. `base` may be `checkpoint` itself, which then runs once.

    `positions`, counted from 1, are the two ids of a text whose losses `ComparedText.late` compares. Batches affect
    numbers by rounding only. `report` gets the number of finished passages.
    """
    sums = torch.zeros(len(text_passages), len(COLUMNS), dtype=torch.float64)
    late: list[tuple[float, float] | None] = [None] * len(text_passages)
    done = 0
    report(done)
    for batch in token_batches([max(map(len, passage.inputs)) for passage in text_passages], batch_tokens):
        chosen = [text_passages[index] for index in batch]
        columns = torch.split(_columns(checkpoint, base, chosen), [len(passage.targets) for passage in chosen])
        for index, passage, part in zip(batch, chosen, columns, strict=True):
            sums[index] = part.sum(0)
            low, high = (position - 1 - passage.first for position in positions)
            if low >= 0 and high < len(part):
                own, other = (float(part[high, place] - part[low, place]) for place in (NLL, BASE_NLL))
                late[index] = own, other
        done += len(batch)
        report(done)
    rows = zip(text_passages, sums.tolist(), late, strict=True)
    texts = [ComparedText(len(passage.targets), TargetSums(*row), pair) for passage, row, pair in rows]
    return Comparison(texts, sum(passage.cut for passage in text_passages))


def same_rows(first: VocabularyLayout, second: VocabularyLayout) -> bool:
    """Return whether every row of the table has the same meaning in both layouts."""
    parts = ("rows", "text_ids", "image_ids", "special_ids")
    return all(getattr(first, part) == getattr(second, part) for part in parts)


def shared_text(first: VocabularyLayout, second: VocabularyLayout) -> tuple[list[range], list[range]]:
    """Return the rows of the tokenizer ids that are text in both layouts, under each of the layouts."""
    moved = second.text.offset - first.text.offset
    shared = [
        range(max(own.start, other.start - moved), min(own.stop, other.stop - moved))
        for own in first.text_ranges
        for other in second.text_ranges
        if own.start < other.stop - moved and other.start - moved < own.stop
    ]
    return shared, [range(rows.start + moved, rows.stop + moved) for rows in shared]


@torch.inference_mode()
def _columns(checkpoint: Side, base: Side, rows: Sequence[Passage]) -> Tensor:
    targets = torch.tensor([token for row in rows for token in row.targets], dtype=torch.int64)
    hidden = _hidden(checkpoint, rows, OWN)
    base_hidden = hidden if base is checkpoint else _hidden(base, rows, BASE)
    apart = [each.model.config.heads_apart for each in (checkpoint, base)]
    aligned = same_rows(checkpoint.layout, base.layout) and apart[0] == apart[1]
    base_text, own_text = shared_text(base.layout, checkpoint.layout)
    chunk = chunk_rows(checkpoint.model.config.vocab_size + base.model.config.vocab_size)
    parts = [torch.zeros(0, len(COLUMNS), dtype=torch.float64)]
    for start in range(0, len(targets), chunk):
        span = slice(start, start + chunk)
        logits = _text_logits(checkpoint, hidden[span])
        losses = base_losses = _losses(checkpoint, logits, targets[span])
        base_logits = logits
        if base is not checkpoint:
            base_logits = _text_logits(base, base_hidden[span])
            base_losses = _losses(base, base_logits, targets[span])
        between = divergences(base_logits, logits, base_text, own_text, aligned)
        columns = (*losses, *base_losses[:2], between.kl, between.kl_within, between.agree)
        parts.append(torch.stack([column.double() for column in columns], dim=1).cpu())
    all_columns = torch.cat(parts)
    _require_finite(checkpoint, all_columns[:, NLL], rows, OWN)
    _require_finite(base, all_columns[:, BASE_NLL], rows, BASE)
    return all_columns


def _hidden(side: Side, rows: Sequence[Passage], which: int) -> Tensor:
    """Return the hidden state before each target, [N, D], so that the head processes no other positions."""
    ids = pad_sequence([torch.tensor(row.inputs[which], dtype=torch.int64) for row in rows], batch_first=True)  # [B, T]
    if not ids.numel():
        return side.model.input_table[:0]
    places = torch.arange(ids.shape[1])
    stops = torch.tensor([len(row.inputs[which]) for row in rows])[:, None]
    counts = torch.tensor([len(row.targets) for row in rows])[:, None]
    kept = (places < stops) & (places >= stops - counts)
    return side.model.hidden(ids.to(side.device))[kept.to(side.device)]


def _text_logits(side: Side, hidden: Tensor) -> Tensor:
    """Return the logits of all ids; those of image ids are -inf where they come from a head of their own."""
    logits = side.model.head(hidden)
    if side.model.config.heads_apart and (image := side.layout.image_range):
        logits[:, image.start : image.stop] = -torch.inf
    return logits


def _losses(side: Side, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = (targets + side.layout.text.offset).to(logits.device)
    text_ids, image_ids = side.layout.text_ranges, side.layout.image_range
    losses = token_losses(logits, rows, lambda logits: logits, text_ids, image_ids, len(logits))
    return losses.nll, losses.within, losses.image_log_mass.double().exp()


def _require_finite(side: Side, losses: Tensor, rows: Sequence[Passage], which: int) -> None:
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if bad:
        passage = [row for row in rows for _ in row.targets][bad[0]]
        cause = nonfinite_cause(side.model, torch.tensor([passage.inputs[which]], device=side.device))
        raise NonFinite(f"{side.label}: the loss of {passage.name} is not finite; {cause}")
