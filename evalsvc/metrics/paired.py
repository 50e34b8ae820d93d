"""Differences between two results, with their errors; on the same items, with the error that pairing leaves.

Two checkpoints that answer the same questions are right and wrong on mostly the same ones, so the error of their
difference is far below what their own errors suggest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.ratio import Ratio
from evalsvc.protocol import Direction

Item = Mapping[str, Any]
"""What a task found for one item: `index`, `benchmark` where the task has several, and numbers; see `TaskResult`."""


LEVEL = 0.95
"""How often an interval holds the truth, where nothing else is said."""

Basis = Literal["paired", "unpaired", "none"]
"""Where the standard error of a difference comes from: the items that both sides share, the standard errors of both
values, or nowhere: no error is known."""

Judgement = Literal["better", "worse", "different", "indistinguishable"]
"""Of b, against a. `different`: of a metric that has no better side."""


@dataclass(frozen=True)
class Interval:
    """Where the truth is, with a probability of `level` over samples."""

    low: float
    high: float
    level: float

    @property
    def covers_zero(self) -> bool:
        return self.low <= 0 <= self.high

    def within(self, margin: float) -> bool:
        """Whether all of it is nearer to zero than `margin`: what there may be of a difference does not matter."""
        return -margin < self.low and self.high < margin


@dataclass(frozen=True)
class Paired:
    """b − a over the items that both have."""

    value: float
    stderr: float | None
    """None with fewer than two items, or where a number is not finite."""
    n: int
    """Items of both sides that weigh anything."""
    n_only_a: int
    """Items of one side that the other lacks; `value` leaves them out."""
    n_only_b: int


@dataclass(frozen=True)
class Distance:
    """How far two values are apart, b − a, with which standard error and on which basis."""

    value: float
    """b − a; 0 where the two are equal, NaN and infinities included."""
    stderr: float | None
    """The standard error of the difference; None where `basis` is `none`."""
    basis: Basis
    n: int
    """The number of paired items; without pairs, the number of items of the smaller side."""
    lacking: tuple[Literal["a", "b"], ...] = ()
    """Where `basis` is `none`: the sides whose value has no finite standard error."""

    def interval(self, level: float = LEVEL) -> Interval | None:
        """Return the interval of the difference; None without a standard error."""
        return None if self.stderr is None else confidence_interval(self.value, self.stderr, level)

    def why_no_error(self, a: str, b: str) -> str:
        """Say why no standard error is known, naming the sides `a` and `b`; an empty string where one is."""
        if len(self.lacking) == 1:
            known = b if self.lacking == ("a",) else a
            return f"only {known} has a standard error, and the error of one side is no error of a difference"
        return f"neither {a} nor {b} has a standard error" if self.lacking else ""


@dataclass(frozen=True)
class Numbers:
    """What a metric is made of, item by item."""

    items: Sequence[tuple[Any, Any]]
    """`benchmark` and `index` of each, by which items match."""
    columns: Sequence[Sequence[float]]
    """One per key of `MetricValue.items`, as long as `items`."""

    def among(self, chosen: Sequence[tuple[Any, Any]]) -> Numbers:
        """The numbers of these items, in their order. Of an item that is there twice, the last."""
        place = {item: position for position, item in enumerate(self.items)}
        positions = [place[item] for item in chosen]
        return Numbers(chosen, [[column[position] for position in positions] for column in self.columns])


def distance(a: Ratio, b: Ratio, pairs: tuple[Numbers, Numbers] | None = None) -> Distance:
    """Say how far the value `b` is from the value `a`, with which standard error, and on which basis.

    This function alone decides that: comparisons, the gate, curves of differences and the forgetting task ask it.
    `pairs` is what the two values are made of, over the same items. Without pairs, or where these leave no error, the
    error is √(a.stderr² + b.stderr²) of independent values. The standard error of one side alone is smaller than that
    of the difference, so it is never taken for it.
    """
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    value = 0.0 if equal else b.value - a.value
    found = None if pairs is None else difference_of(*pairs)
    if found is not None and found.stderr is not None:
        return Distance(value, found.stderr, "paired", found.n)
    n = min(a.n, b.n)
    errors: dict[Literal["a", "b"], float | None] = {"a": a.stderr, "b": b.stderr}
    known = {side: error for side, error in errors.items() if error is not None and math.isfinite(error)}
    if len(known) == len(errors):
        return Distance(value, math.hypot(*known.values()), "unpaired", n)
    return Distance(value, None, "none", n, tuple(side for side in errors if side not in known))


def paired_difference(
    a_items: Sequence[Item], b_items: Sequence[Item], metric_name: str, keys: Sequence[str]
) -> Paired | None:
    """The difference b − a of a metric that is made of items as `MetricValue.items` says; see `difference_of`."""
    return difference_of(*(item_numbers(items, metric_name, keys) for items in (a_items, b_items)))


def difference_of(a: Numbers, b: Numbers) -> Paired | None:
    """The difference b − a of a metric over the items that both have; None without a common item.

    Of one key the metric is the mean, its difference the mean of d_i = b_i − a_i. Of two keys it is the ratio of sums
    R = Σ num / Σ den, and its difference is linearised:

        d_i = (num_b,i − R_b · den_b,i) / mean(den_b) − (num_a,i − R_a · den_a,i) / mean(den_a)

    In both cases stderr² = Σ (d_i − mean(d))² / (n (n − 1)). Items whose weight `den` is 0 on both sides do not count.

    Source: the linearised ratio of W. G. Cochran, Sampling Techniques, 3rd edition, section 6.4, applied to the
    difference of two ratios over one sample.
    """
    in_common = aligned(a, b)
    n_common = len(in_common[0].items)
    rows = [list(zip(*side.columns, strict=True)) for side in in_common]
    pairs = [(x, y) for x, y in zip(*rows, strict=True) if len(x) == 1 or x[1] or y[1]]
    if not pairs:
        return None
    value, parts = _mean_difference(pairs) if len(a.columns) == 1 else _ratio_difference(pairs)
    only_a, only_b = (len(set(side.items)) - n_common for side in (a, b))
    return Paired(value, standard_error(parts), len(pairs), only_a, only_b)


def aligned(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """Both over the items that they have in common, in the order of a."""
    known = set(b.items)
    if len(known) == len(b.items) and a.items == b.items:
        return a, b
    common = [item for item in dict.fromkeys(a.items) if item in known]
    return a.among(common), b.among(common)


def confidence_interval(value: float, stderr: float, level: float = LEVEL) -> Interval:
    """value ± z · stderr, with z the two-sided quantile of the normal distribution.

    Raises:
        InvalidRequest: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InvalidRequest(f"the level of an interval is {level:g}; give a number between 0 and 1, such as {LEVEL}")
    reach = NormalDist().inv_cdf((1 + level) / 2) * stderr
    return Interval(value - reach, value + reach, level)


def judge(difference: Interval, direction: Direction) -> Judgement:
    """What an interval of the difference b − a says of b. A difference that may be zero says nothing of a side."""
    # NaN is on neither side of zero, and nothing is known of it.
    if difference.covers_zero or math.isnan(difference.low + difference.high):
        return "indistinguishable"
    if direction == "none":
        return "different"
    return "better" if (difference.low > 0) == (direction == "higher") else "worse"


def ratio_of_centred(base: Sequence[float], values: Sequence[float], chance: float) -> Ratio | None:
    """How much of an accuracy above chance is left: (mean(values) − r) / (mean(base) − r), paired by place.

    It is the ratio c / c_base of the centred accuracies c = (accuracy − r) / (1 − r), whose 1 − r cancels. The error is
    that of the linearised ratio ρ, with d_i = (values_i − r − ρ · (base_i − r)) / (mean(base) − r). It is worth its
    name only where the base is well above chance. None without items, or where the base is at chance exactly.
    """
    pairs = list(zip(base, values, strict=True))
    if not pairs:
        return None
    above = math.fsum(value - chance for value in base) / len(pairs)
    if above == 0:
        return None
    ratio = math.fsum(value - chance for value in values) / len(pairs) / above
    parts = [(value - chance - ratio * (before - chance)) / above for before, value in pairs]
    return Ratio(ratio, standard_error(parts), len(pairs))


def interval_of_centred(
    base: Sequence[float], values: Sequence[float], chance: float, level: float = LEVEL
) -> Interval | None:
    """Where the ratio of `ratio_of_centred` is: Fieller's interval, which is right also where the base is not far above
    chance. There the ratio is skewed, and ratio ± z · stderr misses on one side.

    With means x̄ = mean(values) − r and ȳ = mean(base) − r and the variances and covariance v of the two means, it has
    all ρ with (x̄ − ρ ȳ)² ≤ z² (v_xx − 2 ρ v_xy + ρ² v_yy). None where that has no end: at this level the base might be
    at chance, and then any ratio might be. None, too, with fewer than two items.

    Source: E. C. Fieller, Journal of the Royal Statistical Society B 16 (1954) 175–185.
    """
    n = len(base)
    if n < 2:
        return None
    x, y = (math.fsum(side) / n - chance for side in (values, base))
    v_xx, v_xy, v_yy = (_covariance_of_means(*sides) for sides in ((values, values), (values, base), (base, base)))
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    a, b, c = y * y - z2 * v_yy, x * y - z2 * v_xy, x * x - z2 * v_xx
    if a <= 0:
        return None
    reach = math.sqrt(max(0.0, b * b - a * c))
    return Interval((b - reach) / a, (b + reach) / a, level)


def mean_of(ratios: Sequence[Ratio]) -> Ratio | None:
    """The plain mean of independent values; stderr² = Σ stderr_k² / K², None where one has none; n is all items."""
    if not ratios:
        return None
    errors = [ratio.stderr for ratio in ratios if ratio.stderr is not None]
    stderr = math.hypot(*errors) / len(ratios) if len(errors) == len(ratios) else None
    return Ratio(math.fsum(ratio.value for ratio in ratios) / len(ratios), stderr, sum(ratio.n for ratio in ratios))


def interval_of_mean(values: Sequence[float], intervals: Sequence[Interval]) -> Interval | None:
    """Of the plain mean of independent values, from their own intervals, which need not be symmetric; all of one level.

    Each side reaches as far as √Σ (value_k − limit_k)² / K. None without values.

    Source: G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008) 1693–1702.
    """
    pairs = list(zip(values, intervals, strict=True))
    if not pairs:
        return None
    mean = math.fsum(values) / len(pairs)
    below = math.hypot(*(value - interval.low for value, interval in pairs)) / len(pairs)
    above = math.hypot(*(interval.high - value for value, interval in pairs)) / len(pairs)
    return Interval(mean - below, mean + above, intervals[0].level)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None with fewer than two, or where one is not finite."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n * (n - 1)))


def _covariance_of_means(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the means of paired values, at least two."""
    n = len(a)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    return math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (n * (n - 1))


def item_numbers(items: Sequence[Item], metric_name: str, keys: Sequence[str]) -> Numbers:
    """The numbers under `keys` of the items that the metric is made of; NaN and infinities may be strings."""
    benchmark = metric_name.partition("/")[0]
    chosen = [
        item
        for item in items
        if item.get("benchmark", benchmark) == benchmark and all(item.get(key) is not None for key in ("index", *keys))
    ]
    columns = [[float(item[key]) for item in chosen] for key in keys]
    return Numbers([(item.get("benchmark"), item["index"]) for item in chosen], columns)


Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]


def _mean_difference(pairs: Pairs) -> tuple[float, list[float]]:
    # What is infinite on both sides is equal.
    parts = [0.0 if a == b else b - a for (a,), (b,) in pairs]
    return _mean(parts), parts


def _ratio_difference(pairs: Pairs) -> tuple[float, list[float]]:
    ratio_a, parts_a = _linearised([a for a, _ in pairs])
    ratio_b, parts_b = _linearised([b for _, b in pairs])
    return ratio_b - ratio_a, [b - a for a, b in zip(parts_a, parts_b, strict=True)]


def _linearised(rows: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """The ratio of sums, and what each item adds to its deviation."""
    weight = _mean([den for _, den in rows])
    if not weight:
        return math.nan, [math.nan] * len(rows)
    ratio = _mean([num for num, _ in rows]) / weight
    return ratio, [(num - ratio * den) / weight for num, den in rows]


def _mean(values: Sequence[float]) -> float:
    """NaN where infinities of both signs meet, which `math.fsum` refuses."""
    total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    return total / len(values)
