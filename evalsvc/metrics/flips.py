"""Items that are right or wrong on two sides: the change of the share of right items, with its bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from evalsvc.metrics.mcnemar import McNemar

JUST_APART = 1e-6
"""Smallest distance of a bound from zero, as a share of the difference, where the bound must exclude or cover zero."""


@dataclass(frozen=True)
class Flips:
    """Paired items that are right (1) or wrong (0), with the change of the share of right items and its error."""

    counts: McNemar

    @property
    def value(self) -> float:
        """Share of items that b answers right, less the share of a."""
        return (self.counts.only_b - self.counts.only_a) / self.counts.n

    def reach(self, tail: float) -> tuple[float, float]:
        """Return the distances from the difference to its one-sided lower and upper bound, each missed with `tail`.

        The bounds are those of Tango's score test, which are valid with few changed items and far out in the tail. The
        bounds are moved to exclude zero exactly where the exact p-value does.

        Source: T. Tango, Statistics in Medicine 17 (1998) 891–908.
        """
        counts, z = self.counts, -NormalDist().inv_cdf(tail)
        low = -_score_bound(counts.only_a, counts.only_b, counts.n, z)
        high = _score_bound(counts.only_b, counts.only_a, counts.n, z)
        edge = JUST_APART * abs(self.value)
        if self.counts.p > 2 * tail:
            low, high = min(low, -edge), max(high, edge)
        elif self.value > 0:
            low = max(low, edge)
        else:
            high = min(high, -edge)
        return self.value - low, high - self.value

    @property
    def stderr(self) -> float:
        """Standard error of the difference; where this would be zero, Bonett and Price's, who add one item per side.

        Source: D. G. Bonett, R. M. Price, Journal of Educational and Behavioral Statistics 37 (2012) 479–488.
        """
        n, changed = self.counts.n, self.counts.only_a + self.counts.only_b
        spread = changed / n - self.value**2
        if spread > 0 and n > 1:
            return math.sqrt(spread / (n - 1))
        share_b, share_a = (self.counts.only_b + 1) / (n + 2), (self.counts.only_a + 1) / (n + 2)
        return math.sqrt((share_b + share_a - (share_b - share_a) ** 2) / (n + 2))


def _score_bound(gained: int, lost: int, n: int, z: float) -> float:

    def score(difference: float) -> float:
        # The maximum-likelihood share of lost items where the shares differ by `difference`.
        linear = (2 * n - gained + lost) * difference - gained - lost
        root = math.sqrt(linear**2 + 8 * n * lost * difference * (1 - difference))
        share = max((root - linear) / (4 * n), 0.0)
        variance = n * (2 * share + difference * (1 - difference))
        return (gained - lost - n * difference) / math.sqrt(variance) if variance > 0 else -math.inf

    low, high = (gained - lost) / n, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > -z else (low, middle)
    return high
