"""Scoring continuations: the part that needs torch.

`score` → `pack` (which requests share a row) → `Transformer.hidden` → the output head where something is scored, and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.layout import VocabularyLayout
from evalsvc.metrics.token_loss import belongs, chunk_rows, log_masses
from evalsvc.models import Transformer
from evalsvc.models.loading import find_nonfinite, nonfinite_cause
from evalsvc.scoring.packing import Request, Row, pack, row_batches

CPU_BATCH_TOKENS = 1024
"""More than a GPU's batch is no use to a CPU: rows of more different lengths are padded, and the activations leave its
caches. 4,096 tokens took 1.4 times as long for the same questions."""


@dataclass(frozen=True)
class Score:
    """How likely a continuation is, with the softmax over all ids and over the text ids alone."""

    logprob: float
    """log p(continuation | context) in nats, summed over its ids."""
    greedy: bool
    """Each of its ids is the likeliest; of several that are equally likely, the first."""
    logprob_within: float
    """The same where only text ids can come; -inf if one of the continuation is none."""
    greedy_within: bool
    """Each of its ids is the likeliest text id."""
    image_mass: float
    """Probability of all image ids where an id of the continuation is due, summed over these."""


def score(
    model: Transformer,
    layout: VocabularyLayout,
    requests: Sequence[Request],
    batch_tokens: int,
    report: Callable[[int], None] = lambda done: None,
    *,
    name: Callable[[int], str] = "request {}".format,
) -> list[Score]:
    """The score of each request, in their order.

    Which requests are scored together, how often one is asked and how large a batch is moves a score by rounding
    only. A batch has at most `batch_tokens` tokens with its padding; see `pack` for a row that has more. `report` gets
    the number of requests done, after every batch; what it raises (e.g. Cancelled) ends the work. `name` says what
    messages call the request of an index.

    Raises:
        InvalidData: a request without context or continuation; where llama_rotary's table ends.
        NonFinite: names the request and the first part of the model that is at fault.
    """
    for index, request in enumerate(requests):
        if not (request.context and request.continuation):
            part = "continuation" if request.context else "context"
            raise InvalidData(f"{name(index)} has an empty {part}; give it at least one token")
    device = model.tok_embeddings.weight.device
    budget = min(batch_tokens, CPU_BATCH_TOKENS) if device.type == "cpu" else batch_tokens
    scores: dict[int, Score] = {}
    report(0)
    for rows in row_batches(pack(requests, budget), budget):
        targets = _targets(rows)
        sums = _sums(model, layout, rows, targets)
        bad = [asked[0] for asked, (logprob, *_) in zip(targets.asked, sums, strict=True) if not isfinite(logprob)]
        if bad:
            raise _not_finite(model, requests, bad, name)
        for asked, (logprob, misses, within, misses_within, mass) in zip(targets.asked, sums, strict=True):
            scores.update(dict.fromkeys(asked, Score(logprob, misses == 0, within, misses_within == 0, mass)))
        report(len(scores))
    return [scores[index] for index in range(len(requests))]


@dataclass(frozen=True)
class _Targets:
    """The ids that are scored in a batch: parallel lists, a target each, and what was asked."""

    places: list[int]
    """Which of the batch's kept hidden states each is predicted from."""
    ids: list[int]
    answers: list[int]
    """Which of `asked` each belongs to."""
    asked: list[Sequence[int]]
    """Indices of the requests that ask for one continuation."""


def _targets(rows: Sequence[Row]) -> _Targets:
    """Kept are, row by row, the last id of the context and all behind it."""
    targets = _Targets([], [], [], [])
    start = 0
    for row in rows:
        place = start + 1
        for branch, ends in row.branches.items():
            path = [start, *range(place, place + len(branch))]
            place += len(branch)
            for last, indices in ends.items():
                targets.places.extend(path)
                targets.ids.extend((*branch, last))
                targets.answers.extend([len(targets.asked)] * len(path))
                targets.asked.append(indices)
        start = place
    return targets


@torch.inference_mode()
def _sums(model: Transformer, layout: VocabularyLayout, rows: Sequence[Row], targets: _Targets) -> list[list[float]]:
    """`_columns`, summed over the targets of each continuation."""
    hidden = _hidden(model, rows)
    places, ids, answers = (
        torch.tensor(column, device=hidden.device) for column in (targets.places, targets.ids, targets.answers)
    )
    sums = torch.zeros(len(targets.asked), 5, dtype=torch.float64, device=hidden.device)
    chunk = chunk_rows(model.config.vocab_size)
    for start in range(0, len(hidden), chunk):
        logits = model.head(hidden[start : start + chunk])
        here = (places >= start) & (places < start + chunk)
        sums.index_add_(0, answers[here], _columns(logits, places[here] - start, ids[here], layout))
    found: list[list[float]] = sums.tolist()
    return found


def _hidden(model: Transformer, rows: Sequence[Row]) -> Tensor:
    """The hidden states that predict something, [P, D]: the head sees no others."""
    device = model.tok_embeddings.weight.device
    ids = _pad([row.ids for row in rows])  # [B, T]
    if rows[0].plain:
        hidden = model.hidden(ids.to(device))
    else:
        branches = _pad([row.branch_numbers for row in rows]).to(device)
        positions = _pad([row.positions for row in rows]).to(device)
        hidden = model.hidden(ids.to(device), mask=_branch_mask(branches), positions=positions)
    columns = torch.arange(ids.shape[1])
    contexts, lengths = torch.tensor([[len(row.context), row.length] for row in rows]).T[..., None]  # each [B, 1]
    kept = (columns >= contexts - 1) & (columns < lengths)
    return hidden[kept.to(device)]


def _pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """[B, T] int64. What follows a sequence is never seen by it, so any id will do there."""
    padded = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.tensor(sequence)
    return padded


def _branch_mask(
    branches: Tensor,  # [B, T]; 0 is the context
) -> Tensor:  # [B, T, T] bool
    """A token sees the context and its own branch, and of both what comes before it."""
    own = branches[:, :, None] == branches[:, None, :]
    return (own | (branches == 0)[:, None, :]).tril()


def _columns(
    logits: Tensor,  # [n, V] float32
    at: Tensor,  # [N], which of the n each target is predicted from
    ids: Tensor,  # [N]
    layout: VocabularyLayout,
) -> Tensor:  # [N, 5] float64
    """Of each target, what sums up to a Score: log-likelihood and whether another id is likelier, over all ids and
    within text ids; the mass of the image ids."""
    text = layout.text_ids
    masses = log_masses(logits, text, layout.image_range)
    target, everything = logits[at, ids].double(), masses.everything.double()
    within = torch.where(belongs(ids, text), target - masses.text.double()[at], -torch.inf)
    likeliest, likeliest_text = logits.argmax(1), logits[:, text.start : text.stop].argmax(1) + text.start
    columns = (
        target - everything[at],
        likeliest[at] != ids,
        within,
        likeliest_text[at] != ids,
        (masses.image.double() - everything).exp()[at],
    )
    return torch.stack([column.double() for column in columns], dim=1)


def _not_finite(
    model: Transformer, requests: Sequence[Request], bad: Sequence[int], name: Callable[[int], str]
) -> NonFinite:
    """The error of the first request that is not finite alone: within a row NaN reaches the others, mask or not."""
    index = next((index for index in bad if find_nonfinite(model, _alone(model, requests[index]))), bad[0])
    cause = nonfinite_cause(model, _alone(model, requests[index]))
    return NonFinite(f"the log-likelihood of {name(index)} is not finite; {cause}")


def _alone(model: Transformer, request: Request) -> Tensor:  # [1, T]
    ids = [*request.context, *request.continuation[:-1]]
    return torch.tensor([ids], device=model.tok_embeddings.weight.device)
