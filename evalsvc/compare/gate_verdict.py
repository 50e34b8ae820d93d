"""Verdict of the gate on one metric: worse, better, within the tolerance, or within the noise.

The verdict rests on one interval of the difference. Each end of the interval misses the true difference with the level
of the rule.
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
    "worse", "better", "within_noise", "within_tolerance", "missing", "other_protocol", "not_judged", "new", "ignored"
]
"""Verdict on a metric. `worse`, `better`: beyond the tolerance and beyond the noise. `within_tolerance`: the metric is
worse by more than the tolerance at no point of its interval, or did not change and the rule states no tolerance.
`within_noise`: none of these, so the metric may be worse by more than the tolerance. `not_judged`: there are too few
items, or neither noise nor tolerance is known, or a side lacks items of the other, or the rule asks for more certainty
than there is. `new`: only the candidate has the value. `ignored`: the value is missing, and the rule allows that."""

LEAST_TAIL = 1e-300
"""Smallest probability that a bound is computed for: quantiles of smaller ones overflow in float64."""


@dataclass(frozen=True)
class Difference:
    """Value of the candidate minus value of the baseline, as a `Distance`, with the limits of the rule."""

    value: float
    stderr: float | None
    basis: Basis
    n: int
    groups: int | None
    n_only_baseline: int
    n_only_candidate: int
    low: float | None
    """Lower end of the interval, which is above the true difference with probability `level`; None if not known."""
    high: float | None
    """Upper end of the interval, which is below the true difference with probability `level`; None if not known."""
    level: float | None
    """Probability that an unchanged metric is called worse; None if the noise is not known."""
    p: float | None
    """Exact two-sided p-value of no difference, which then decides whether the difference is noise."""
    tolerance: float
    noise: float | None
    """Worsening, in the metric's unit, that chance alone may show; None if not known."""
    fails_at: float | None
    """Approximate smallest worsening that would have been a regression: the larger of tolerance and noise. None if the
    metric is not judged."""


@dataclass(frozen=True)
class Gap:
    """Distance between the candidate's and the baseline's value of a metric, with the rule for the metric."""

    rule: Rule
    contrast: Contrast
    """Contrast with the baseline as a and the candidate as b."""
    distance: Distance

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values are better, by the rule's direction, or by the metric's where the rule has none."""
        return (self.rule.direction or self.contrast.metric.direction) == "higher"

    @cached_property
    def worse(self) -> float:
        """The worsening of the candidate in the metric's unit, 0 if the values are equal; NaN is infinitely bad."""
        return self.contrast.worse(self.higher_is_better)

    @property
    def tolerance(self) -> float:
        """The tolerated worsening, in the metric's unit."""
        baseline = self.contrast.measured.estimate.value
        relative = self.rule.relative * abs(baseline) if math.isfinite(baseline) else 0.0
        return max(self.rule.absolute, relative)

    @property
    def has_noise(self) -> bool:
        """Whether chance can decide: the rule considers noise, and the noise or an exact p-value is known."""
        known = math.isfinite(self.worse) and self._p is not None and not self.lacks_items
        return self.rule.standard_errors > 0 and known

    @property
    def left_out(self) -> str:
        """The number of items that each side lacks, as a clause; empty if no item is left out of the difference."""
        lacking = {"the candidate": self.distance.n_only_a, "the baseline": self.distance.n_only_b}
        n = self.distance.n
        return " and ".join(
            f"{side} lacks {count:,} of {n + count:,} items" for side, count in lacking.items() if count
        )

    @property
    def lacks_items(self) -> bool:
        """Whether a side lacks more items of the other side than the rule allows, such as those that went wrong."""
        fewer, more = sorted((self.distance.n_only_a, self.distance.n_only_b))
        measured = self.contrast.measured
        # Both sides of one protocol have the same items, unless the task may stop early.
        stops = not fewer and "until" in measured.result.protocol(measured.metric.protocol)
        return not stops and more > self.rule.left_out * (self.distance.n + more)

    @property
    def too_few(self) -> bool:
        """Whether the value is made of items, too few of them for an interval."""
        spread, has_items = self.distance.spread, bool(self.contrast.measured.metric.items)
        few = 0 < self.distance.independent < MIN_ITEMS
        return few and has_items if spread is None else few or spread.dof < 1

    @property
    def alike(self) -> bool:
        """Whether the values are equal, and paired items, if there are any, are equal one by one."""
        distance = self.distance
        if self.worse or distance.basis != "paired":
            return not self.worse
        if distance.flips is None:
            return not distance.stderr
        return not (distance.flips.only_a or distance.flips.only_b)

    def bounds(self, tail: float) -> tuple[float, float] | None:
        """Return the interval of the worsening, whose ends each miss with probability `tail`; None if not known."""
        if self.rule.standard_errors == 0:
            return (self.worse, self.worse) if math.isfinite(self.worse) else None
        reach = self.distance.reach(max(tail, LEAST_TAIL)) if math.isfinite(self.worse) else None
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
        """Return whether the difference, on either side, exceeds the noise at the one-sided level `tail`."""
        if self.rule.standard_errors == 0:
            return True
        p = self._p
        return p is not None and p <= 2 * tail

    @property
    def _p(self) -> float | None:
        return self.distance.p_value() if self.distance.independent >= MIN_ITEMS else None


def tails(gaps: Sequence[Gap], levels: Sequence[float], family: Family) -> list[float]:
    """Return the one-sided probability with which each metric's bounds may miss; `levels` are those of single metrics.

    With `holm`, the probability that any unchanged metric is called worse is at most the mean level. Metrics are tested
    in ascending order of p-value over level. A metric is tested at its level, times the mean level, divided by the sum
    of the levels of the metrics that are not rejected yet. After the first metric that is not rejected, no later metric
    is rejected.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65–70, section 3, with the levels as weights.
    """
    chosen = list(levels)
    judged = [place for place, gap in enumerate(gaps) if family == "holm" and gap.has_noise]
    if not judged:
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
    """Return the verdict on one metric, the reason as a sentence, and the numbers.

    `tail` is the probability with which each bound may miss, and `level` the level to report. At one of several looks,
    `tail` is smaller than `level`. Before the `last` look, a metric is worse or better only if its whole interval is
    beyond the tolerance, because repeated looks give the estimate repeated chances to exceed the tolerance.
    """
    bounds = gap.bounds(tail)
    noise = None if bounds is None else max(gap.worse - bounds[0], 0.0)
    verdict, reason = _verdict(gap, bounds, tail, last)
    if gap.left_out and gap.left_out not in reason:
        reason = f"{reason}; {gap.left_out}"
    judged = verdict != "not_judged"
    ends: tuple[float | None, float | None] = (None, None)
    if bounds is not None:
        ends = (-bounds[1], -bounds[0]) if gap.higher_is_better else bounds
    distance = gap.distance
    difference = Difference(
        **{name: getattr(distance, name) for name in ("value", "stderr", "basis", "n", "groups", "p")},
        n_only_baseline=distance.n_only_a,
        n_only_candidate=distance.n_only_b,
        low=ends[0],
        high=ends[1],
        level=level if gap.has_noise else None,
        tolerance=gap.tolerance,
        noise=noise,
        fails_at=max(gap.tolerance, noise or 0.0) if judged and math.isfinite(gap.worse) else None,
    )
    return verdict, reason, difference


def _verdict(gap: Gap, bounds: tuple[float, float] | None, tail: float, last: bool) -> tuple[Verdict, str]:
    worse, tolerance = gap.worse, gap.tolerance
    side = f"{'worse' if worse > 0 else 'better'} by {abs(worse):.3g}" if worse else "equal in the mean"
    in_both = f" in the {gap.distance.n:,} items that both sides have" if gap.left_out else ""
    if gap.lacks_items:
        cure = f"and `left_out` of the rule allows a share of {gap.rule.left_out:g}; measure what lacks items again"
        return "not_judged", f"{'equal' if gap.alike else side}{in_both}, but {gap.left_out}, {cure}"
    if gap.alike:
        # What the items that are equal so far leave possible in others may be more than a tolerance.
        is_open = gap.too_few if bounds is None else bounds[1] > tolerance
        if (last or bounds is None) and not (is_open and gap.rule.states_tolerance):
            return "within_tolerance", f"equal{in_both}"
        side = "equal in every item" if gap.distance.basis == "paired" else side
    if not math.isfinite(worse):
        return ("worse" if worse > 0 else "better"), f"{side}: a value that is not finite is not due to chance"
    if bounds is None:
        return _without_bounds(gap, side, tail)
    noise = max(worse - bounds[0], 0.0)
    if gap.beyond_noise(tail) and (abs(worse) > tolerance if last else bounds[0] > tolerance or bounds[1] < -tolerance):
        limits = f"the tolerance {tolerance:.2g} and the noise {noise if worse > 0 else bounds[1] - worse:.2g}"
        return ("worse" if worse > 0 else "better"), f"{side}, beyond {limits}{_exact(gap)}"
    if bounds[1] <= tolerance:
        most = f"worse by {bounds[1]:.3g} at most" if bounds[1] > 0 else f"better by {-bounds[1]:.3g} at least"
        return "within_tolerance", f"{side}; {most}, within the tolerance {tolerance:.2g}"
    return _inconclusive(gap, side, noise, bounds)


def _exact(gap: Gap) -> str:
    return "" if gap.distance.p is None else f" (exact p {gap.distance.p:.2g})"


def _inconclusive(gap: Gap, side: str, noise: float, bounds: tuple[float, float]) -> tuple[Verdict, str]:
    rule, worse, tolerance = gap.rule, gap.worse, gap.tolerance
    within = f"the noise {noise:.2g}" if worse <= 0 or bounds[0] <= 0 else f"the tolerance {tolerance:.2g}"
    result = f"{side}, within {within}{_exact(gap)}; worse by up to {bounds[1]:.3g} is not ruled out"
    if rule.max_noise is not None and noise > rule.max_noise:
        cure = f"measure about {_items_for(gap, noise, rule.max_noise)}"
        return "not_judged", f"{side}, but the noise {noise:.2g} is above max_noise {rule.max_noise:g}; {cure}"
    if rule.inconclusive == "fail":
        reach, room = bounds[1] - worse, tolerance - worse
        more = f"measure about {_items_for(gap, reach, room)}, or give" if room > 0 else "measure more items, or give"
        cure = f"{more} its rule a larger tolerance or `inconclusive: pass`"
        return "not_judged", f"{result}, and the tolerance is {tolerance:.2g}; {cure}"
    return "within_noise", result


def _items_for(gap: Gap, noise: float, wanted: float) -> str:
    """Return the number of items at which the noise is `wanted`; √n divides it, or, if all are equal, n + z²."""
    equal_answers = gap.alike and gap.distance.flips is not None
    fall = noise * (1 - wanted) / ((1 - noise) * wanted) if equal_answers else (noise / wanted) ** 2
    return f"{math.ceil(gap.distance.n * fall):,} items"


def _without_bounds(gap: Gap, side: str, tail: float) -> tuple[Verdict, str]:
    rule, worse, tolerance = gap.rule, gap.worse, gap.tolerance
    unknown = gap.distance.why_no_error("the baseline", "the candidate")
    within = abs(worse) <= tolerance
    if within and gap.distance.stderr == 0 and gap.distance.independent >= MIN_ITEMS:
        return "within_tolerance", f"{side} in every item alike, within the tolerance {tolerance:.2g}"
    verdict: Verdict = "within_tolerance" if within else "worse" if worse > 0 else "better"
    if gap.has_noise and not within:
        if gap.beyond_noise(tail):
            return verdict, f"{side} in every item alike, beyond the tolerance {tolerance:.2g}{_exact(gap)}"
        few = f"{side} in every item alike, which {gap.distance.n} items may be by chance{_exact(gap)}"
        if rule.inconclusive == "fail" or rule.max_noise is not None:
            return "not_judged", f"{few}; measure more items"
        return "within_noise", few
    if gap.too_few:
        return "not_judged", f"{side}, but the noise is not known: {unknown}; measure more items"
    if not rule.states_tolerance:
        cure = "give its rule (--rules) a tolerance, `absolute` or `relative`, which then decides alone"
        return "not_judged", f"{side}, but the noise is not known: {unknown}; {cure}"
    if rule.max_noise is not None:
        return "not_judged", f"{side}, but max_noise needs the noise, which is not known: {unknown}"
    beyond = "within" if within else "beyond"
    return verdict, f"{side}, {beyond} the tolerance {tolerance:.2g}, which alone decides: {unknown}"
