"""McNemar's test of two models on the same questions, and Holm's correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class McNemar:
    """Numbers of questions by who is right. Only questions on which the models differ carry evidence."""

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


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
