"""Divergence of one model's next-token distribution from another's, which moves long before an accuracy does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    base_text: range,
    other_text: range,
    same_rows: bool,
) -> Divergences:
    """Compute the divergences of n positions.

    With `same_rows`, a row has the same meaning for both models, and the divergence is over all rows:

        KL = Σ_v p(v) (log p(v) - log q(v))

    Otherwise only text ids correspond: the t-th id of `base_text` is the t-th id of `other_text`, up to the length of
    the shorter range. Then p is the base's distribution over these ids, given that one of these ids comes, and q is
    over all rows of the other model: probability on images counts against the other model. `kl_within` renormalises
    both.

    Source: S. Kullback, R. A. Leibler, On Information and Sufficiency, 1951; the base's distribution comes first, as in
    the cross-entropy against a base of Kalajdzievski, arXiv 2401.05605.
    """
    size = min(len(base_text), len(other_text))
    base_ids = base[:, base_text.start : base_text.start + size]
    other_ids = other[:, other_text.start : other_text.start + size]
    log_p, log_q = base_ids.log_softmax(1), other_ids.log_softmax(1)
    within = _kl(log_p, log_q)
    if same_rows:
        return Divergences(_kl(base.log_softmax(1), other.log_softmax(1)), within, base.argmax(1) == other.argmax(1))
    outside = other.logsumexp(1).double() - other_ids.logsumexp(1).double()  # -log q(any of these ids)
    agree = base_ids.argmax(1) + other_text.start == other.argmax(1)
    return Divergences(within + outside, within, agree)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return Σ p (log p - log q) of each row, summed in float64: [n, V] twice to [n]."""
    # An id with probability zero under the base contributes nothing, however far apart the logarithms are.
    terms = torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q))
    return terms.sum(1, dtype=torch.float64)
