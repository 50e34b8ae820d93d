"""How far one model's next-token distribution is from another's: what moves long before an accuracy does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergences:
    """One value per position, [n]."""

    kl: Tensor
    """KL(base ‖ other), float64, in nats."""
    kl_within: Tensor
    """The same where only text ids can come."""
    agree: Tensor
    """Whether both have the same likeliest id, bool; of several that are equally likely, the first counts."""


def divergences(
    base: Tensor,  # [n, V_base] float32 logits
    other: Tensor,  # [n, V] float32 logits
    base_text: range,
    other_text: range,
    same_rows: bool,
) -> Divergences:
    """Compute the divergences of n positions.

    With `same_rows` a row means the same to both, and the divergence is over all of them:

        KL = Σ_v p(v) (log p(v) - log q(v))

    Otherwise only text has a counterpart: the t-th id of `base_text` is the t-th of `other_text`, as far as both go.
    Then p is the base's distribution over these ids, given that one of them comes, while q is over all rows of the
    other: what it gives to images counts against it. `kl_within` renormalises both.

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
    outside = other.logsumexp(1).double() - other_ids.logsumexp(1).double()  # -log q(some of these ids)
    agree = base_ids.argmax(1) + other_text.start == other.argmax(1)
    return Divergences(within + outside, within, agree)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p - log q) of each row, summed in float64: [n, V] twice to [n]."""
    # An id that the base never expects weighs nothing, however far apart the logarithms are.
    terms = torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q))
    return terms.sum(1, dtype=torch.float64)
