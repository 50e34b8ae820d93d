"""Negative log-likelihood of tokens under a model's output head, over all ids and within the token's type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """-log p(target | any id of the target's type), for text and image targets; NaN for other targets."""
    image_log_mass: Tensor
    """log p(any image id); -inf without image ids."""


def token_losses(
    hidden: Tensor,  # [N, D], at the position before each target
    targets: Tensor,  # [N] int64
    head: Callable[[Tensor], Tensor],  # [n, D] -> [n, V] float32 logits
    text_ids: range,
    image_ids: range | None,
    chunk: int,
) -> TokenLosses:
    """Compute the losses of N targets, with `head` called on `chunk` rows at a time so that [N, V] never exists.

    `text_ids` and `image_ids` do not overlap and have step 1. Every logit is read once: the normaliser over all ids is
    the sum of the masses of text ids, image ids and other ids.
    """
    parts = [
        _chunk_losses(head(hidden[start : start + chunk]), targets[start : start + chunk], text_ids, image_ids)
        for start in range(0, len(targets), chunk)
    ]
    nll, within, mass = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenLosses(nll, within, mass)


def chunk_rows(vocab_size: int) -> int:
    """Return the number of rows whose float32 logits take about `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def belongs(ids: Tensor, block: range | None) -> Tensor:
    """Return which of `ids` [N] lie in `block`, bool [N]; all False for None."""
    if block is None:
        return torch.zeros_like(ids, dtype=torch.bool)
    return (ids >= block.start) & (ids < block.stop)


def _chunk_losses(
    logits: Tensor,  # [n, V]
    targets: Tensor,  # [n]
    text_ids: range,
    image_ids: range | None,
) -> tuple[Tensor, Tensor, Tensor]:
    target = logits.gather(1, targets[:, None])[:, 0]
    text, image = _log_mass(logits, text_ids), _log_mass(logits, image_ids)
    everything = torch.logaddexp(text, image)
    for gap in gaps(logits.shape[1], text_ids, image_ids):
        everything = torch.logaddexp(everything, _log_mass(logits, gap))
    type_mass = torch.where(belongs(targets, text_ids), text, torch.full_like(text, torch.nan))
    type_mass = torch.where(belongs(targets, image_ids), image, type_mass)
    return everything - target, type_mass - target, image - everything


def _log_mass(logits: Tensor, ids: range | None) -> Tensor:
    """Return log Σ exp over the columns of `ids`, [n]; -inf for None."""
    if ids is None:
        return torch.full_like(logits[:, 0], -torch.inf)
    return logits[:, ids.start : ids.stop].logsumexp(1)


def gaps(vocab_size: int, *blocks: range | None) -> list[range]:
    """Return the ranges of ids that are in none of `blocks`."""
    gaps, start = [], 0
    for block in sorted((block for block in blocks if block), key=lambda block: block.start):
        gaps.append(range(start, block.start))
        start = block.stop
    return [gap for gap in (*gaps, range(start, vocab_size)) if gap]
