"""Items that are right or wrong on two sides: McNemar's test, the change of the share, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

JUST_APART = 1e-6
"""Smallest distance of a bound from zero, as a share of the difference, where the bound must exclude or cover zero."""


@dataclass(frozen=True)
class McNemar:
    """Paired items that are right or wrong, by who is right; only items on which the sides differ carry evidence."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def p(self) -> float:
        """Two-sided p-value that a question is as often right for a alone as for b alone: exact, from the binomial.

        Source: Q. McNemar, Psychometrika 12 (1947) 153–157, in the exact form of the sign test.
        """
        differing = self.only_a + self.only_b
        fewer = min(self.only_a, self.only_b)
        ways = math.lgamma(differing + 1)
        logs = [ways - math.lgamma(k + 1) - math.lgamma(differing - k + 1) for k in range(fewer + 1)]
        return min(1.0, 2 * math.fsum(math.exp(log - differing * math.log(2)) for log in logs))

    @property
    def value(self) -> float:
        """Share of items that b answers right, less the share of a."""
        return (self.only_b - self.only_a) / self.n

    def reach(self, tail: float) -> tuple[float, float]:
        """Return the distances from the difference to its one-sided lower and upper bound, each missed with `tail`.

        The bounds are those of Tango's score test, which are valid with few changed items and far out in the tail. The
        bounds are moved to exclude zero exactly where the exact p-value does.

        Source: T. Tango, Statistics in Medicine 17 (1998) 891–908.
        """
        z = -NormalDist().inv_cdf(tail)
        low = -_score_bound(self.only_a, self.only_b, self.n, z)
        high = _score_bound(self.only_b, self.only_a, self.n, z)
        edge = JUST_APART * abs(self.value)
        if self.p > 2 * tail:
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
        n, changed = self.n, self.only_a + self.only_b
        spread = changed / n - self.value**2
        if spread > 0 and n > 1:
            return math.sqrt(spread / (n - 1))
        share_b, share_a = (self.only_b + 1) / (n + 2), (self.only_a + 1) / (n + 2)
        return math.sqrt((share_b + share_a - (share_b - share_a) ** 2) / (n + 2))


def mcnemar(a_right: Sequence[bool], b_right: Sequence[bool]) -> McNemar:
    """Count paired answers: `a_right[i]` and `b_right[i]` are of one question. Raises ValueError if lengths differ."""
    pairs = list(zip(map(bool, a_right), map(bool, b_right), strict=True))
    return McNemar(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests so that any false one below α has a probability of at most α over all tests.

    The order is kept. NaN, a test that could not be made, stays NaN and does not count as a test.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.
    """
    known = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    corrected = list(map(float, p_values))
    largest = 0.0
    for rank, index in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


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
