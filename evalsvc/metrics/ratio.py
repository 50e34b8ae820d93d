"""Means over tokens, with an error over sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    value: float
    stderr: float | None
    """None with fewer than two items."""
    n: int
    """Items that weigh anything."""


def ratio_of_sums(sums: Sequence[float], counts: Sequence[float]) -> Ratio | None:
    """The ratio R = Σ sums / Σ counts over independent items, with its standard error; None if every count is 0.

    A mean loss per token is such a ratio: `sums` are the items' summed losses, `counts` their tokens. Tokens of one
    item depend on each other, so the items are what varies; their counts vary too, so R is not a mean of means.
    The error is that of the linearised ratio, with d_i = sums_i - R · counts_i over the n items with tokens:

        stderr² = n / (n - 1) · Σ d_i² / (Σ counts)²

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, section 6.4 (ratio estimate from a simple random sample,
    without the finite population correction). With equal counts it is the standard error of the mean of the items.
    """
    pairs = [(total, count) for total, count in zip(sums, counts, strict=True) if count]
    weight = math.fsum(count for _, count in pairs)
    if not pairs:
        return None
    value = math.fsum(total for total, _ in pairs) / weight
    n = len(pairs)
    if n < 2:
        return Ratio(value, None, n)
    squares = math.fsum((total - value * count) ** 2 for total, count in pairs)
    return Ratio(value, math.sqrt(n / (n - 1) * squares) / weight, n)


@dataclass(frozen=True)
class Moments:
    """What a ratio of sums and its error need of independent items; those of two parts of the data add up.

    Of the n items with tokens, with x the item's sum and c its count.
    """

    n: float
    c: float
    x: float
    cc: float
    cx: float
    xx: float

    def ratio(self) -> Ratio | None:
        """`ratio_of_sums` of the items; None without any.

        Σ (x − R c)² is expanded, so an error below 1e-8 of the value drowns in rounding and may come out as 0.
        """
        if not self.c:
            return None
        value = self.x / self.c
        if self.n < 2:
            return Ratio(value, None, int(self.n))
        squares = max(self.xx - 2 * value * self.cx + value**2 * self.cc, 0.0)
        return Ratio(value, math.sqrt(self.n / (self.n - 1) * squares) / self.c, int(self.n))


def perplexity(loss: Ratio) -> Ratio:
    """exp of a mean loss in nats; its error by the delta method, exp(L) · stderr(L). Infinity where it overflows."""
    try:
        value = math.exp(loss.value)
    except OverflowError:
        value = math.inf
    return Ratio(value, None if loss.stderr is None else value * loss.stderr, loss.n)
