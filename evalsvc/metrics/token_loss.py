"""Losses of tokens under a model's output head, and how far two models' next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Approximate bytes of float32 logits in memory at a time; the exponentials need as much again."""


@dataclass(frozen=True)
class TokenLosses:
    """Losses per target in nats, float32 [N]."""

    nll: Tensor
    """-log p(target)."""
    within: Tensor
    """-log p(target | any id of the target's type), for text and image targets; for another target, given that either
    the target or a text id comes."""
    image_log_mass: Tensor
    """log p(any image id); -inf without image ids, and where these have a head of their own."""


def token_losses(
    hidden: Tensor,  # [N, D], at the position before each target
    targets: Tensor,  # [N] int64
    head: Callable[[Tensor], Tensor],  # [n, D] -> [n, V] float32 logits
    text_ids: Sequence[range],
    image_ids: range | None,
    chunk: int,
    heads_apart: bool = False,
) -> TokenLosses:
    """Compute the losses of N targets, with `head` called on `chunk` rows at a time so that [N, V] never exists.

    The ranges of `text_ids` and `image_ids` do not overlap and have step 1. Every logit is read once: the normaliser
    over all ids is the sum of the masses of text ids, image ids and other ids. With `heads_apart`, image ids have a
    head of their own: p of an image target is over the image ids, and p of any other target over all other ids.
    """
    blocks = text_ids, image_ids, heads_apart
    parts = [
        _chunk_losses(head(hidden[start : start + chunk]), targets[start : start + chunk], *blocks)
        for start in range(0, len(targets), chunk)
    ]
    nll, within, mass = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenLosses(nll, within, mass)


def chunk_rows(vocab_size: int) -> int:
    """Return the number of rows whose float32 logits take about `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def belongs(ids: Tensor, *blocks: range | None) -> Tensor:
    """Return which of `ids` [N] lie in any of `blocks`, bool [N]."""
    inside = torch.zeros_like(ids, dtype=torch.bool)
    for block in blocks:
        if block is not None:
            inside |= (ids >= block.start) & (ids < block.stop)
    return inside


def _chunk_losses(
    logits: Tensor, targets: Tensor, text_ids: Sequence[range], image_ids: range | None, heads_apart: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # logits [n, V], targets [n]
    target = logits.gather(1, targets[:, None])[:, 0]
    text, image = _log_mass(logits, *text_ids), _log_mass(logits, image_ids)
    is_text, is_image = belongs(targets, *text_ids), belongs(targets, image_ids)
    of_images = torch.full_like(image, -torch.inf) if heads_apart else image
    everything = torch.logaddexp(text, of_images)
    for gap in gaps(logits.shape[1], *text_ids, image_ids):
        everything = torch.logaddexp(everything, _log_mass(logits, gap))
    if heads_apart:
        everything = torch.where(is_image, image, everything)
    type_mass = torch.where(is_text, text, torch.logaddexp(text, target))
    type_mass = torch.where(is_image, image, type_mass)
    return everything - target, type_mass - target, of_images - everything


def _log_mass(logits: Tensor, *blocks: range | None) -> Tensor:
    masses = [logits[:, block.start : block.stop].logsumexp(1) for block in blocks if block is not None]
    return reduce(torch.logaddexp, masses) if masses else torch.full_like(logits[:, 0], -torch.inf)


def gaps(vocab_size: int, *blocks: range | None) -> list[range]:
    """Return the ranges of ids that are in none of `blocks`."""
    gaps, start = [], 0
    for block in sorted((block for block in blocks if block), key=lambda block: block.start):
        gaps.append(range(start, block.start))
        start = block.stop
    return [gap for gap in (*gaps, range(start, vocab_size)) if gap]


@dataclass(frozen=True)
class Divergences:
    """Divergences per position, [n]."""

    kl: Tensor
    """KL(base ‖ other) in nats, float64."""
    kl_within: Tensor
    """KL(base ‖ other) in nats, with both distributions over text ids only, float64."""
    agree: Tensor
    """Whether both models have the same likeliest id, bool; of several equally likely ids, the first counts."""


def divergences(
    base: Tensor,  # [n, V_base] float32 logits
    other: Tensor,  # [n, V] float32 logits
    base_text: Sequence[range],
    other_text: Sequence[range],
    same_rows: bool,
) -> Divergences:
    """Compute the divergences of n positions.

    With `same_rows`, a row has the same meaning for both models, and the divergence is over all rows:

        KL = Σ_v p(v) (log p(v) - log q(v))

    Otherwise only text ids correspond: `base_text` and `other_text` are the same ids in the rows of each model, in
    ranges of the same lengths. Then p is the base's distribution over these ids, given that one of these ids comes, and
    q is over all rows of the other model: probability on images counts against the other model. `kl_within`
    renormalises both.

    Source: S. Kullback, R. A. Leibler, On Information and Sufficiency, 1951; the base's distribution comes first, as in
    the cross-entropy against a base of Kalajdzievski, arXiv 2401.05605.
    """
    base_ids, other_ids = _of_ranges(base, base_text), _of_ranges(other, other_text)
    log_p, log_q = base_ids.log_softmax(1), other_ids.log_softmax(1)
    within = _kl(log_p, log_q)
    if same_rows:
        return Divergences(_kl(base.log_softmax(1), other.log_softmax(1)), within, base.argmax(1) == other.argmax(1))
    outside = other.logsumexp(1).double() - other_ids.logsumexp(1).double()  # -log q(any of these ids)
    rows = torch.cat([torch.arange(part.start, part.stop, device=other.device) for part in other_text])
    return Divergences(within + outside, within, rows[base_ids.argmax(1)] == other.argmax(1))


def _of_ranges(logits: Tensor, ranges: Sequence[range]) -> Tensor:
    parts = [logits[:, part.start : part.stop] for part in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return Σ p (log p - log q) of each row, summed in float64: [n, V] twice to [n]."""
    # An id with probability zero under the base contributes nothing, however far apart the logarithms are.
    terms = torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q))
    return terms.sum(1, dtype=torch.float64)
