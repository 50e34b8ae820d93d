"""The rules of the verdicts: claims about numbers, with bounds that were fixed before the computation.

A claim says that a number lies `within` a distance of zero, or `above` or `below` a bound. Both the claim and its
opposite are tested, so that few seeds and wide intervals are neither agreement nor contradiction, but `undecided`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from evalsvc.metrics.intervals import WIDEST, upper_tail
from evalsvc.metrics.mcnemar import holm

Agrees = Literal["yes", "no", "undecided", "not measured"]
Region = Literal["within", "above", "below"]

LEVEL = 0.05
"""Probability of a wrong `yes`, and of a wrong `no`, over all findings of a scale."""
SAME_LOSS = 0.02
"""Share of the random start's loss at the end below which a difference of losses counts as none."""
SAME_DISTANCE = 0.1
"""Share of the random start's distance below which a difference of distances counts as none."""
GONE = 0.2
"""Share of what a benchmark showed above chance below which it counts as forgotten."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper about a number that was measured at several seeds."""

    says: str
    values: Sequence[float]
    """The number at each seed."""
    errors: Sequence[float]
    """Standard error over items at each seed. Seeds share the items, so that their mean has it too."""
    region: Region
    bound: float

    @property
    def value(self) -> float:
        return fmean(self.values)

    @property
    def error(self) -> float:
        """Standard error √(s² / S + e²), of the spread s between S seeds and the largest error e over items."""
        return math.sqrt(self._between + max(self.errors) ** 2)

    @property
    def _between(self) -> float:
        return variance(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of 95 % over seeds and items, which the p-values agree with."""
        low, high = 0.0, WIDEST
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._tail(middle * self.error) > LEVEL / 2 else (low, middle)
        return self.value - high * self.error, self.value + high * self.error

    @property
    def p_values(self) -> tuple[float, float]:
        """The p-value against the opposite of the claim, and the one against the claim.

        `within` is two one-sided tests (D. J. Schuirmann, 1987). The p-value against it is that at the bound.
        """
        if len(self.values) < 2:
            return 1.0, 1.0
        if self.region == "within":
            distance = abs(self.value)
            return self._tail(self.bound - distance), self._tail(distance - self.bound) + self._tail(
                distance + self.bound
            )
        beyond = self.value - self.bound if self.region == "above" else self.bound - self.value
        return self._tail(beyond), self._tail(-beyond)

    def _tail(self, distance: float) -> float:
        """Return the probability that an estimate lies as far above its true value.

        It is the mean of Student's for the seeds and the normal distribution's for the items, each with the weight of
        its variance: a little more than the truth, as with the critical values of W. G. Cochran and G. M. Cox (1950).
        """
        errors = distance / self.error if self.error else math.copysign(math.inf, distance)
        share = self._between / self.error**2 if self.error else 0.0
        seeds, items = (upper_tail(abs(errors), freedom) for freedom in (len(self.values) - 1, math.inf))
        tail = share * seeds + (1 - share) * items
        return tail if errors > 0 else 1 - tail


def verdicts(findings: Mapping[str, Sequence[Claim]]) -> dict[str, Agrees]:
    """Return the verdict on each finding.

    `yes`: all claims of the finding hold. `no`: one of them does not. Both at `LEVEL` over all findings by Holm's
    procedure; the claims of a finding need no correction for `yes`, since all must hold, and have Bonferroni's for
    `no`. `undecided`: anything else. A finding without claims is not measured.
    """
    claimed = {name: [claim.p_values for claim in claims] for name, claims in findings.items() if claims}
    holds = holm([max(yes for yes, _ in pairs) for pairs in claimed.values()])
    fails = holm([min(1.0, len(pairs) * min(no for _, no in pairs)) for pairs in claimed.values()])
    found: dict[str, Agrees] = dict.fromkeys(findings, "not measured")
    for name, yes, no in zip(claimed, holds, fails, strict=True):
        found[name] = "yes" if yes <= LEVEL else "no" if no <= LEVEL else "undecided"
    return found
