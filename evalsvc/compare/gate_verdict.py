"""What the difference of one metric says by a rule: worse, better, harmless, or nothing beyond the noise.

All is said of one interval, whose two ends each miss the truth with the level of the rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evalsvc.compare.contrast import Contrast
from evalsvc.compare.gate_rules import Rule
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.spec.documents.comparisons import Basis, Family

Verdict = Literal[
    "worse",
    "better",
    "within_noise",
    "within_tolerance",
    "missing",
    "other_protocol",
    "not_judged",
    "new",
    "ignored",
]
"""`worse`, `better`: beyond the tolerance and beyond the noise. `within_tolerance`: nowhere in its interval is the
metric worse by more than the tolerance, or nothing changed at all. `within_noise`: none of these, so the metric may be
worse by more than the tolerance. `not_judged`: the noise is not known and the rule states no tolerance, or the rule
asks for more certainty than there is. `new`: only the candidate has the value. `ignored`: missing, as the rule
allows."""

LEAST_TAIL = 1e-300
"""No bound is asked for with a smaller chance: it would be no number in float64."""


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline, what is known of its error, and what would have been a regression."""

    value: float
    stderr: float | None
    """None: no error is known, and only a tolerance that the rule states can decide."""
    basis: Basis
    n: int
    """Items that are paired; else those of the smaller side."""
    groups: int | None
    """Independent groups of these items; None: every item is one."""
    low: float | None
    """The lower end of the interval, which lies above the truth with a chance of `level`; None: not known."""
    high: float | None
    """The upper end of the interval, which lies below the truth with a chance of `level`; None: not known."""
    level: float | None
    """The chance that the metric is called worse though it did not change; None: not known."""
    p: float | None
    """The exact two-sided p-value of no difference, where there is one; it then decides what is noise."""
    tolerance: float
    """How much worse the rule tolerates."""
    noise: float | None
    """How much worse the metric may look by chance; None: not known."""
    fails_at: float | None
    """About the smallest difference to the bad side that would have been a regression: the larger of tolerance and
    noise; None: nothing would, since the metric is not judged."""


@dataclass(frozen=True)
class Gap:
    """How far the candidate's value of a metric is from the baseline's, and the rule for the metric."""

    rule: Rule
    contrast: Contrast
    """The baseline is a, the candidate is b."""
    found: Distance
    """The distance of the contrast, which both sides have."""

    @property
    def higher_is_better(self) -> bool:
        """Which way is better, by the rule or else by the metric."""
        return (self.rule.direction or self.contrast.metric.direction) == "higher"

    @cached_property
    def worse(self) -> float:
        """How much worse the candidate is, 0 if both are equal; NaN is as bad as it gets."""
        return self.contrast.worse(self.higher_is_better)

    @property
    def tolerance(self) -> float:
        """How much worse the rule tolerates, in the metric's unit."""
        baseline = self.contrast.measured.estimate.value
        relative = self.rule.relative * abs(baseline) if math.isfinite(baseline) else 0.0
        return max(self.rule.absolute, relative)

    @property
    def has_noise(self) -> bool:
        """Whether chance decides: the noise, or an exact p-value, is known, and the rule asks for it."""
        return self.rule.standard_errors > 0 and math.isfinite(self.worse) and self._p is not None

    @property
    def alike(self) -> bool:
        """Whether there is nothing to judge: equal values, and no item says that they are so by chance."""
        found = self.found
        if self.worse or found.basis != "paired":
            return not self.worse
        return not found.stderr if found.flips is None else not (found.flips.counts.only_a or found.flips.counts.only_b)

    def bounds(self, tail: float) -> tuple[float, float] | None:
        """Return the interval of how much worse the candidate is; None where it is not known."""
        if self.rule.standard_errors == 0:
            return (self.worse, self.worse) if math.isfinite(self.worse) else None
        reach = self.found.reach(max(tail, LEAST_TAIL)) if math.isfinite(self.worse) else None
        if reach is None:
            return None
        below, above = reversed(reach) if self.higher_is_better else reach
        return self.worse - below, self.worse + above

    def chance(self) -> float:
        """Return the one-sided p-value of no change for the worse."""
        p = self._p
        if p is None:
            return 1.0
        return p / 2 if self.worse > 0 else 1 - p / 2

    def beyond_noise(self, tail: float) -> bool:
        """Say whether the difference, to whichever side, is none that chance alone would make."""
        if self.rule.standard_errors == 0:
            return True
        p = self._p
        return p is not None and p <= 2 * tail

    @property
    def _p(self) -> float | None:
        return self.found.p_value() if self.found.independent >= MIN_ITEMS else None


def tails(gaps: Sequence[Gap], levels: Sequence[float], family: Family) -> list[float]:
    """Return with which one-sided chance each metric's bounds may miss; `levels` are those of each metric alone.

    `holm`: all metrics together call one of them worse that is not with a chance of the mean level at most. The metrics
    are taken in the order of their p-values over levels. Each is held against its level times the mean level over the
    sum of the levels of those that are not beyond theirs; where one is not beyond it, none of the later ones is.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70, section 3, with the levels as weights.
    """
    chosen = list(levels)
    judged = [place for place, gap in enumerate(gaps) if gap.has_noise]
    if family == "none" or not judged:
        return chosen
    left = math.fsum(levels[place] for place in judged)
    mean = left / len(judged)
    judged.sort(key=lambda place: gaps[place].chance() / levels[place])
    for rank, place in enumerate(judged):
        share = mean / left
        if gaps[place].chance() > levels[place] * share:
            for later in judged[rank:]:
                chosen[later] = levels[later] * share
            break
        chosen[place] = levels[place] * share
        left = math.fsum(levels[later] for later in judged[rank + 1 :])
    return chosen


def judge(gap: Gap, tail: float, level: float, *, last: bool = True) -> tuple[Verdict, str, Difference]:
    """Return the verdict of one metric, a sentence that says why, and the numbers.

    `tail` is the chance with which each bound may miss, `level` what is said of the metric: at one of several looks the
    former is smaller. Before the `last` look a metric is worse, or better, only where its whole interval is beyond the
    tolerance: the many looks give an estimate many chances to be beyond it.
    """
    bounds = gap.bounds(tail)
    noise = None if bounds is None else max(gap.worse - bounds[0], 0.0)
    verdict, reason = _verdict(gap, bounds, tail, last)
    judged = verdict != "not_judged"
    ends: tuple[float | None, float | None] = (None, None)
    if bounds is not None:
        ends = (-bounds[1], -bounds[0]) if gap.higher_is_better else bounds
    found = gap.found
    difference = Difference(
        value=found.value,
        stderr=found.stderr,
        basis=found.basis,
        n=found.n,
        groups=found.groups,
        low=ends[0],
        high=ends[1],
        level=level if gap.has_noise else None,
        p=found.p,
        tolerance=gap.tolerance,
        noise=noise,
        fails_at=max(gap.tolerance, noise or 0.0) if judged and math.isfinite(gap.worse) else None,
    )
    return verdict, reason, difference


def _verdict(gap: Gap, bounds: tuple[float, float] | None, tail: float, last: bool) -> tuple[Verdict, str]:
    worse, tolerance = gap.worse, gap.tolerance
    # What is alike so far need not stay so; at the end it is all that there is.
    if gap.alike and (last or bounds is None):
        return "within_tolerance", "equal"
    side = f"{'worse' if worse > 0 else 'better'} by {abs(worse):.3g}" if worse else "equal in the mean"
    if not math.isfinite(worse):
        return ("worse" if worse > 0 else "better"), f"{side}: what is not finite is no matter of chance"
    if bounds is None:
        return _without_bounds(gap, side, tail)
    noise = max(worse - bounds[0], 0.0)
    if gap.beyond_noise(tail) and (abs(worse) > tolerance if last else bounds[0] > tolerance or bounds[1] < -tolerance):
        return ("worse" if worse > 0 else "better"), f"{side}, beyond {_limits(gap, bounds)}{_exact(gap)}"
    if bounds[1] <= tolerance:
        most = f"worse by {bounds[1]:.3g} at most" if bounds[1] > 0 else f"better by {-bounds[1]:.3g} at least"
        return "within_tolerance", f"{side}; {most}, within the tolerance {tolerance:.2g}"
    return _inconclusive(gap, side, noise, bounds)


def _limits(gap: Gap, bounds: tuple[float, float]) -> str:
    noise = gap.worse - bounds[0] if gap.worse > 0 else bounds[1] - gap.worse
    return f"the tolerance {gap.tolerance:.2g} and the noise {noise:.2g}"


def _exact(gap: Gap) -> str:
    return "" if gap.found.p is None else f" (exact p {gap.found.p:.2g})"


def _inconclusive(gap: Gap, side: str, noise: float, bounds: tuple[float, float]) -> tuple[Verdict, str]:
    """A metric that may be worse by more than the tolerance, and may be no worse at all or by less."""
    rule, worse, tolerance, n = gap.rule, gap.worse, gap.tolerance, gap.found.n
    within = f"the noise {noise:.2g}" if worse <= 0 or bounds[0] <= 0 else f"the tolerance {tolerance:.2g}"
    found = f"{side}, within {within}{_exact(gap)}; worse by up to {bounds[1]:.3g} is not ruled out"
    if rule.max_noise is not None and noise > rule.max_noise:
        wanted = f"measure about {_items(n, noise, rule.max_noise)}"
        return "not_judged", f"{side}, but the noise {noise:.2g} is above max_noise {rule.max_noise:g}; {wanted}"
    if rule.inconclusive == "fail":
        reach, room = bounds[1] - worse, tolerance - worse
        wanted = f"measure about {_items(n, reach, room)}, or give" if room > 0 else "measure more items, or give"
        remedy = f"{wanted} its rule a larger tolerance or `inconclusive: pass`"
        return "not_judged", f"{found}, and the tolerance is {tolerance:.2g}; {remedy}"
    return "within_noise", found


def _items(n: int, noise: float, wanted: float) -> str:
    """Of how many items the noise would be as small as wanted: it falls with their square root."""
    return f"{math.ceil(n * (noise / wanted) ** 2):,} items"


def _without_bounds(gap: Gap, side: str, tail: float) -> tuple[Verdict, str]:
    """Judge by an exact p-value where there is one, else by a tolerance that the rule states."""
    rule, worse, tolerance = gap.rule, gap.worse, gap.tolerance
    unknown = gap.found.why_no_error("the baseline", "the candidate")
    within = abs(worse) <= tolerance
    if within and gap.found.stderr == 0 and gap.found.independent >= MIN_ITEMS:
        return "within_tolerance", f"{side} in every item alike, within the tolerance {tolerance:.2g}"
    verdict: Verdict = "within_tolerance" if within else "worse" if worse > 0 else "better"
    if gap.has_noise and not within:
        if gap.beyond_noise(tail):
            return verdict, f"{side} in every item alike, beyond the tolerance {tolerance:.2g}{_exact(gap)}"
        few = f"{side} in every item alike, which {gap.found.n} items may be by chance{_exact(gap)}"
        if rule.inconclusive == "fail" or rule.max_noise is not None:
            return "not_judged", f"{few}; measure more items"
        return "within_noise", few
    if not rule.states_tolerance:
        remedy = "give its rule (--rules) a tolerance, `absolute` or `relative`, which then decides alone"
        return "not_judged", f"{side}, but it is not known what is noise: {unknown}; {remedy}"
    if rule.max_noise is not None:
        return "not_judged", f"{side}, but max_noise asks for the noise, which is not known: {unknown}"
    beyond = "within" if within else "beyond"
    return verdict, f"{side}, {beyond} the tolerance {tolerance:.2g}, which alone decides: {unknown}"
