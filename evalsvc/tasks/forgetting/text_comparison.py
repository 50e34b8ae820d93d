"""One text under two models, token by token: the part of the forgetting task that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.metrics.divergence import divergences
from evalsvc.metrics.token_loss import chunk_rows, token_losses
from evalsvc.models import Transformer
from evalsvc.models.loading import nonfinite_cause
from evalsvc.scoring.packing import token_batches
from evalsvc.spec.layout import VocabularyLayout

OWN, BASE = 0, 1


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    label: str
    """What messages call it."""
    model: Transformer
    layout: VocabularyLayout
    device: str


@dataclass(frozen=True)
class Passage:
    """What both models predict of one text."""

    name: str
    """What messages call it."""
    targets: Sequence[int]
    """Ids of the tokenizer, as they follow each other."""
    first: int
    """Place of the first target in the text, counted from 0."""
    cut: bool
    """The text goes on, but the sequence would be too long."""
    inputs: tuple[Sequence[int], Sequence[int]]
    """What checkpoint and base read, rows of their tables: all up to the id before the last target."""


@dataclass(frozen=True)
class TargetSums:
    """Numbers of the targets, summed over a text; losses and divergences in nats."""

    nll: float
    """The checkpoint's loss over all ids."""
    within: float
    """The checkpoint's loss within the text ids."""
    image_mass: float
    """The checkpoint's probability of all image ids."""
    base_nll: float
    base_within: float
    kl: float
    """Divergence from the base over all ids."""
    kl_within: float
    top1: float
    """1 where both models have the same likeliest id."""


COLUMNS = tuple(field.name for field in fields(TargetSums))


@dataclass(frozen=True)
class ComparedText:
    """What two models make of one text."""

    tokens: int
    """Number of targets."""
    sums: TargetSums
    late: tuple[float, float] | None
    """Loss at the later of two positions less that at the earlier one, of both models; None where a text is shorter."""


@dataclass(frozen=True)
class Comparison:
    """What two models make of several texts."""

    texts: Sequence[ComparedText]
    cut: int
    """How many texts were cut."""


def passages(
    layout: VocabularyLayout,
    base: VocabularyLayout,
    texts: Sequence[Sequence[int]],  # ids of the tokenizer
    names: Sequence[str],
    max_length: int,
) -> list[Passage]:
    """Return what can be compared of each text: ids that have an id before them in both layouts.

    What is read is no longer than `max_length`. Raises InvalidData where an id is in no text block of a layout.
    """
    return [_passage((layout, base), ids, name, max_length) for ids, name in zip(texts, names, strict=True)]


def compare(
    own: Side,
    base: Side,
    some: Sequence[Passage],
    positions: tuple[int, int],
    batch_tokens: int,
    report: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Run both models on every passage; `base` may be `own` itself, which then runs once.

    `positions`, counted from 1, are the two ids of a text whose losses `ComparedText.late` compares. Batches move
    numbers by rounding only. `report` gets the number of passages done.

    Raises:
        NonFinite: names the model, the passage and the first part of the model that is at fault.
    """
    sums = torch.zeros(len(some), len(COLUMNS), dtype=torch.float64)
    late: list[tuple[float, float] | None] = [None] * len(some)
    done = 0
    report(done)
    for batch in token_batches([max(map(len, passage.inputs)) for passage in some], batch_tokens):
        chosen = [some[index] for index in batch]
        columns = torch.split(_columns(own, base, chosen), [len(passage.targets) for passage in chosen])
        for index, passage, part in zip(batch, chosen, columns, strict=True):
            sums[index] = part.sum(0)
            late[index] = _late(part, passage, positions)
        done += len(batch)
        report(done)
    rows = zip(some, sums.tolist(), late, strict=True)
    texts = [ComparedText(len(passage.targets), TargetSums(*row), pair) for passage, row, pair in rows]
    return Comparison(texts, sum(passage.cut for passage in some))


def same_rows(one: VocabularyLayout, other: VocabularyLayout) -> bool:
    """Whether every row of the table means the same in both layouts."""
    parts = ("rows", "text_ids", "image_ids", "special_ids")
    return all(getattr(one, part) == getattr(other, part) for part in parts)


def _passage(
    layouts: tuple[VocabularyLayout, VocabularyLayout], ids: Sequence[int], name: str, max_length: int
) -> Passage:
    try:
        sequences = [layout.sequence(ids, None) for layout in layouts]
    except InvalidData as error:
        raise InvalidData(f"{name} {error.message}") from None
    before = [
        next((place for place, row in enumerate(sequence.ids) if row in layout.text_ids), 0)
        for layout, sequence in zip(layouts, sequences, strict=True)
    ]
    first = 0 if all(before) else 1
    stop = min(len(ids) - max(sequence.cut for sequence in sequences), max_length + 1 - max(before))
    targets = ids[first : max(first, stop)]
    own, base = (
        sequence.ids[: place + stop - 1] if targets else [] for sequence, place in zip(sequences, before, strict=True)
    )
    return Passage(name, targets, first, stop < len(ids), (own, base))


@torch.inference_mode()
def _columns(own: Side, base: Side, rows: Sequence[Passage]) -> Tensor:
    """float64 [N, len(COLUMNS)] on the CPU: the targets of every passage, one passage after the other."""
    targets = torch.tensor([token for row in rows for token in row.targets], dtype=torch.int64)
    hidden = _hidden(own, rows, OWN)
    base_hidden = hidden if base is own else _hidden(base, rows, BASE)
    aligned = same_rows(own.layout, base.layout)
    chunk = chunk_rows(own.model.config.vocab_size + base.model.config.vocab_size)
    parts = [torch.zeros(0, len(COLUMNS), dtype=torch.float64)]
    for start in range(0, len(targets), chunk):
        here = slice(start, start + chunk)
        logits = own.model.head(hidden[here])
        losses = base_losses = _losses(own, logits, targets[here])
        base_logits = logits
        if base is not own:
            base_logits = base.model.head(base_hidden[here])
            base_losses = _losses(base, base_logits, targets[here])
        apart = divergences(base_logits, logits, base.layout.text_ids, own.layout.text_ids, aligned)
        columns = (*losses, *base_losses[:2], apart.kl, apart.kl_within, apart.agree)
        parts.append(torch.stack([column.double() for column in columns], dim=1).cpu())
    found = torch.cat(parts)
    _require_finite(own, found[:, COLUMNS.index("nll")], rows, OWN)
    _require_finite(base, found[:, COLUMNS.index("base_nll")], rows, BASE)
    return found


def _hidden(side: Side, rows: Sequence[Passage], which: int) -> Tensor:
    """The hidden state before each target, [N, D]: the head sees no others."""
    ids = pad_sequence([torch.tensor(row.inputs[which], dtype=torch.int64) for row in rows], batch_first=True)  # [B, T]
    if not ids.numel():
        return side.model.tok_embeddings.weight[:0]
    places = torch.arange(ids.shape[1])
    stops = torch.tensor([len(row.inputs[which]) for row in rows])[:, None]
    counts = torch.tensor([len(row.targets) for row in rows])[:, None]
    kept = (places < stops) & (places >= stops - counts)
    return side.model.hidden(ids.to(side.device))[kept.to(side.device)]


def _losses(side: Side, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss over all ids and within text, and image mass, of the targets [n] (ids of the tokenizer)."""
    rows = (targets + side.layout.text.offset).to(logits.device)
    text_ids, image_ids = side.layout.text_ids, side.layout.image_range
    found = token_losses(logits, rows, lambda logits: logits, text_ids, image_ids, len(logits))
    return found.nll, found.within, found.image_log_mass.double().exp()


def _late(columns: Tensor, passage: Passage, positions: tuple[int, int]) -> tuple[float, float] | None:
    early, late = (position - 1 - passage.first for position in positions)
    if early < 0 or late >= len(columns):
        return None
    own, base = (
        float(columns[late, place] - columns[early, place]) for place in map(COLUMNS.index, ("nll", "base_nll"))
    )
    return own, base


def _require_finite(side: Side, losses: Tensor, rows: Sequence[Passage], which: int) -> None:
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if bad:
        passage = [row for row in rows for _ in row.targets][bad[0]]
        cause = nonfinite_cause(side.model, torch.tensor([passage.inputs[which]], device=side.device))
        raise NonFinite(f"{side.label}: the loss of {passage.name} is not finite; {cause}")
