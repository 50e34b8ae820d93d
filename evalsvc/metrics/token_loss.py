"""Negative log-likelihood of tokens under a model's output head, over all ids and within the token's own type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Bytes of float32 logits alive at a time, about; as much again goes into their exponentials."""


@dataclass(frozen=True)
class TokenLosses:
    """One value per target, float32 [N], in nats."""

    nll: Tensor
    """-log p(target)."""
    within: Tensor
    """-log p(target | some id of the target's type), for text and image targets; NaN for the others."""
    image_log_mass: Tensor
    """log p(some image id); -inf where there are none."""


def token_losses(
    hidden: Tensor,  # [N, D], at the position before each target
    targets: Tensor,  # [N] int64
    head: Callable[[Tensor], Tensor],  # [n, D] -> [n, V] float32 logits
    text_ids: range,
    image_ids: range | None,
    chunk: int,
) -> TokenLosses:
    """Losses of N targets, with `head` called on `chunk` rows at a time so that [N, V] never exists.

    `text_ids` and `image_ids` do not overlap and have step 1. Every logit is read once: the normaliser over all ids is
    put together from those of text, image and the rest.
    """
    parts = [
        _chunk_losses(head(hidden[start : start + chunk]), targets[start : start + chunk], text_ids, image_ids)
        for start in range(0, len(targets), chunk)
    ]
    nll, within, mass = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenLosses(nll, within, mass)


def chunk_rows(vocab_size: int) -> int:
    """Rows whose float32 logits take about `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def belongs(ids: Tensor, block: range | None) -> Tensor:
    """Which of `ids` [N] lie in `block`: bool [N]; none do in None."""
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
    own = torch.where(belongs(targets, text_ids), text, torch.full_like(text, torch.nan))
    own = torch.where(belongs(targets, image_ids), image, own)
    return everything - target, own - target, image - everything


def _log_mass(logits: Tensor, ids: range | None) -> Tensor:
    """Return log Σ exp over some columns, [n]; -inf where there are none."""
    if ids is None:
        return torch.full_like(logits[:, 0], -torch.inf)
    return logits[:, ids.start : ids.stop].logsumexp(1)


def gaps(vocab_size: int, *blocks: range | None) -> list[range]:
    """The ids that are in none of `blocks`."""
    gaps, start = [], 0
    for block in sorted((block for block in blocks if block), key=lambda block: block.start):
        gaps.append(range(start, block.start))
        start = block.stop
    return [gap for gap in (*gaps, range(start, vocab_size)) if gap]
