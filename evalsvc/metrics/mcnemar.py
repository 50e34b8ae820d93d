"""What two models get right on the same questions, and whether one gets more of them right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class McNemar:
    """Questions by who is right. Only those on which the two differ say anything of a difference."""

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
        tail = math.fsum(math.exp(_log_binomial(differing, k)) for k in range(fewer + 1))
        return min(1.0, 2 * tail)


def mcnemar(a_right: Sequence[bool], b_right: Sequence[bool]) -> McNemar:
    """Count paired answers: `a_right[i]` and `b_right[i]` are of one question. Raises ValueError for other lengths."""
    pairs = list(zip(map(bool, a_right), map(bool, b_right), strict=True))
    return McNemar(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that one below α is false with a probability of α at most, over all.

    In the order given; NaN, a test that could not be made, stays NaN and counts for none.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.
    """
    known = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    corrected = list(map(float, p_values))
    largest = 0.0
    for rank, index in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _log_binomial(n: int, k: int) -> float:
    """ln of the probability of k heads in n tosses of a fair coin."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
