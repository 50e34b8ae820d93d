"""Differences between two results, with their errors; on the same items, with the error that pairing leaves.

Two checkpoints that answer the same questions are right and wrong on mostly the same ones, so the error of their
difference is far below what their own errors suggest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval, Spread, bend_of, require_level
from evalsvc.metrics.mcnemar import McNemar, mcnemar
from evalsvc.metrics.ratio import Ratio, exp_or_infinity
from evalsvc.metrics.shares import group_sums, standard_error
from evalsvc.metrics.student import critical_value
from evalsvc.spec.protocol import Direction

Item = Mapping[str, Any]
"""What a task found for one item: `index`, `benchmark` where the task has several, and numbers; see `TaskResult`."""

Basis = Literal["paired", "unpaired", "none"]
"""Where the standard error of a difference comes from: the items that both sides share, the standard errors of both
values, or nowhere: no error is known."""

Judgement = Literal["better", "worse", "different", "indistinguishable"]
"""Of b, against a. `different`: of a metric that has no better side."""

ALIKE = 1e-12
"""Relative to the largest of them: differences that spread less are the same number but for rounding."""

JUST_APART = 1e-6
"""Of a difference, how near zero a bound may come that must not cover zero, or must."""


@dataclass(frozen=True)
class Flips:
    """Paired items that are right (1) or wrong (0): how far the share of right ones moved, and how sure that is."""

    counts: McNemar

    @property
    def value(self) -> float:
        """The share of items that b is right on, less that of a."""
        return (self.counts.only_b - self.counts.only_a) / self.counts.n

    def reach(self, tail: float) -> tuple[float, float]:
        """Return how far below and above the difference its one-sided bounds lie, each of which misses with `tail`.

        The bounds are those of Tango's score test, which miss as often as they say with one or two changed items, too,
        and far out in the tail. Where the exact p-value says that the difference may be zero, zero is not beyond a
        bound, and where the p-value says that it is not, zero is.

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
        """The standard error of the difference; where it would be zero, that of Bonett and Price, who add one item to
        each side.

        Source: D. G. Bonett, R. M. Price, Journal of Educational and Behavioral Statistics 37 (2012) 479–488.
        """
        n, changed = self.counts.n, self.counts.only_a + self.counts.only_b
        spread = changed / n - self.value**2
        return math.sqrt(spread / (n - 1)) if spread > 0 and n > 1 else self._stderr

    @property
    def _stderr(self) -> float:
        n = self.counts.n + 2
        ours, theirs = (self.counts.only_b + 1) / n, (self.counts.only_a + 1) / n
        return math.sqrt((ours + theirs - (ours - theirs) ** 2) / n)


def _score_bound(gained: int, lost: int, n: int, z: float) -> float:
    """Return the difference of shares, gained less lost, above the observed one at which the score statistic is −z."""

    def score(difference: float) -> float:
        # The share of lost items that is likeliest where the shares differ by `difference`.
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


@dataclass(frozen=True)
class Paired:
    """b − a over the items that both have."""

    value: float
    spread: Spread | None
    """None with fewer than two independent items, or where a number is not finite."""
    n: int
    """Items of both sides that weigh anything."""
    groups: int | None
    """Independent groups of them; None: every item is one."""
    n_only_a: int
    """Items of one side that the other lacks; `value` leaves them out."""
    n_only_b: int
    p: float | None = None
    """The exact two-sided p-value of no difference, where there is one: McNemar's of items that are right or wrong,
    that of the sign test where every item has the same difference."""
    flips: Flips | None = None
    """Of items that are right or wrong."""

    @property
    def stderr(self) -> float | None:
        """The standard error of `value`."""
        return None if self.spread is None else self.spread.stderr

    @property
    def independent(self) -> int:
        """The number of independent items, or of independent groups of items."""
        return self.n if self.groups is None else self.groups


@dataclass(frozen=True)
class Distance:
    """How far two values are apart, b − a, with which standard error and on which basis."""

    value: float
    """b − a; of pairs over the items that both have. 0 where the two are equal, NaN and infinities included."""
    stderr: float | None
    """The standard error of the difference; None where `basis` is `none`."""
    basis: Basis
    n: int
    """The number of paired items; without pairs, the number of items of the smaller side."""
    lacking: tuple[Literal["a", "b"], ...] = ()
    """Where `basis` is `none`: the sides whose value has no finite standard error."""
    groups: int | None = None
    """Independent groups of the `n` items; None: every item is one."""
    n_only_a: int = 0
    """Items of one side that the other lacks, which are in no pair."""
    n_only_b: int = 0
    p: float | None = None
    """The exact two-sided p-value of no difference, where there is one; see `Paired.p`."""
    spread: Spread | None = None
    """The errors of `estimate`; None where `basis` is `none`."""
    flips: Flips | None = None
    """Of paired items that are right or wrong."""
    log_a: float | None = None
    """Of perplexities, the logarithm of a: `spread` is that of the difference of the logarithms."""

    @property
    def independent(self) -> int:
        """The number of independent items, or of independent groups of items, on which the error rests."""
        return self.n if self.groups is None else self.groups

    @property
    def has_bounds(self) -> bool:
        """Whether bounds of the difference are known: there are enough items, and they vary."""
        if self.spread is None or self.independent < MIN_ITEMS or not math.isfinite(self.value):
            return False
        if self.spread.dof < 1:
            return False
        return self.flips is not None or self.spread.stderr > 0

    def reach(self, tail: float) -> tuple[float, float] | None:
        """Return how far below and above `value` its one-sided bounds lie, each of which misses with `tail`; None
        where no bounds are known."""
        if not self.has_bounds or self.spread is None:
            return None
        if self.flips is not None:
            return self.flips.reach(tail)
        below, above = self.spread.reach(tail)
        if self.log_a is None:
            return below, above
        estimate = self._estimate
        low, high = (
            exp_or_infinity(self.log_a + estimate + side) - exp_or_infinity(self.log_a) for side in (-below, above)
        )
        return self.value - low, high - self.value

    def interval(self, level: float = LEVEL) -> Interval | None:
        """Return the interval of the difference; None where no bounds are known.

        Raises:
            InvalidRequest: `level` is not between 0 and 1.
        """
        require_level(level)
        reach = self.reach((1 - level) / 2)
        return None if reach is None else Interval(self.value - reach[0], self.value + reach[1], level)

    def p_value(self) -> float | None:
        """Return the two-sided p-value of no difference; None where nothing is known.

        `interval(level)` leaves out zero exactly where the p-value is at most 1 − level.
        """
        if self.p is not None:
            return self.p
        return None if not self.has_bounds or self.spread is None else self.spread.p_value(self._estimate)

    def verdict(self, level: float, direction: Direction) -> Judgement | None:
        """Say what the difference says of b at this level; None where nothing is known."""
        p = self.p_value()
        return None if p is None else judge(self.value, p, level, direction)

    def why_no_error(self, a: str, b: str) -> str:
        """Say why there is no interval, naming the sides `a` and `b`; an empty string where there is one."""
        if len(self.lacking) == 1:
            known = b if self.lacking == ("a",) else a
            return f"only {known} has a standard error, and the error of one side is no error of a difference"
        if self.lacking:
            return f"neither {a} nor {b} has a standard error"
        if self.basis == "none" or self.has_bounds or not math.isfinite(self.value):
            return ""
        if self.independent < MIN_ITEMS:
            what = "items" if self.groups is None else "independent groups of items"
            return f"{self.independent} {what} are too few, an interval needs {MIN_ITEMS}"
        if self.spread is not None and self.spread.dof < 1:
            return "one item has nearly all of the weight, so that the spread of items is not known"
        return "all items have the same difference, so that their spread is not known"

    @property
    def _estimate(self) -> float:
        """What `spread` is about: the difference, or that of the logarithms."""
        if self.log_a is None:
            return self.value
        return math.log1p(self.value / math.exp(self.log_a))


@dataclass(frozen=True)
class Numbers:
    """What a metric is made of, item by item."""

    items: Sequence[tuple[Any, Any]]
    """`benchmark` and `index` of each, by which items match."""
    columns: Sequence[Sequence[float]]
    """One per key of `MetricValue.items`, as long as `items`."""
    groups: Sequence[Hashable] | None = None
    """The group of each item, of which only different ones are independent; None: every item is one."""

    def among(self, chosen: Sequence[tuple[Any, Any]]) -> Numbers:
        """The numbers of these items, in their order. Of an item that is there twice, the last."""
        place = {item: position for position, item in enumerate(self.items)}
        positions = [place[item] for item in chosen]
        groups = None if self.groups is None else [self.groups[position] for position in positions]
        return Numbers(chosen, [[column[position] for position in positions] for column in self.columns], groups)


def distance(
    a: Ratio,
    b: Ratio,
    pairs: tuple[Numbers, Numbers] | None = None,
    *,
    unit: str = "",
    drawn_from: int | None = None,
) -> Distance:
    """Say how far the value `b` is from the value `a`, with which standard error, and on which basis.

    This function alone decides that: comparisons, the gate, curves of differences and the forgetting task ask it.
    `pairs` is what the two values are made of; the difference is over the items that both have. Without pairs, or where
    these leave no error, the error is √(a.stderr² + b.stderr²) of independent values, with the degrees of freedom of
    Welch. The standard error of one side alone is smaller than that of the difference, so it is never taken for it.

    Of perplexities (`unit` is `perplexity`), whose pairs are those of the loss, all is done on the logarithms, so that
    a loss and its perplexity say the same. `drawn_from`: the items are a sample without replacement of so many.

    Source: B. L. Welch, Biometrika 34 (1947) 28–35.
    """
    if unit == "perplexity" and all(0 < side.value < math.inf for side in (a, b)):
        return _of_logarithms(a, b, pairs, drawn_from)
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    value = 0.0 if equal else b.value - a.value
    found = None if pairs is None else difference_of(*pairs, drawn_from=drawn_from)
    if found is not None and found.spread is not None and math.isfinite(value):
        return Distance(
            # Where no item is left out, the values themselves: theirs is the least rounding.
            found.value if found.n_only_a or found.n_only_b else value,
            found.spread.stderr,
            "paired",
            found.n,
            groups=found.groups,
            n_only_a=found.n_only_a,
            n_only_b=found.n_only_b,
            p=found.p,
            spread=found.spread,
            flips=found.flips,
        )
    smaller = min(a, b, key=lambda side: side.independent)
    sides: dict[Literal["a", "b"], Ratio] = {"a": a, "b": b}
    lacking = tuple(name for name, side in sides.items() if side.stderr is None or not math.isfinite(side.stderr))
    if lacking:
        return Distance(value, None, "none", smaller.n, lacking, smaller.groups)
    spread = _welch(a, b)
    return Distance(value, spread.stderr, "unpaired", smaller.n, groups=smaller.groups, spread=spread)


def _of_logarithms(a: Ratio, b: Ratio, pairs: tuple[Numbers, Numbers] | None, drawn_from: int | None) -> Distance:
    """Return the distance of two perplexities from that of their logarithms."""
    logs = [
        replace(side, value=math.log(side.value), stderr=None if side.stderr is None else side.stderr / side.value)
        for side in (a, b)
    ]
    of_logs = distance(logs[0], logs[1], pairs, drawn_from=drawn_from)
    log_a = logs[0].value
    value = b.value - a.value if not (of_logs.n_only_a or of_logs.n_only_b) else a.value * math.expm1(of_logs.value)
    stderr = None if of_logs.stderr is None else (a.value + value) * of_logs.stderr
    return replace(of_logs, value=value, stderr=stderr, log_a=log_a)


def _welch(a: Ratio, b: Ratio) -> Spread:
    squares = [(side.stderr or 0.0) ** 2 for side in (a, b)]
    total = math.fsum(squares)
    if not total:
        return Spread(0.0, min(a.independent, b.independent) - 1)
    shares = [square / total for square in squares]
    terms = [share**2 / max(side.independent - 1, 1) for share, side in zip(shares, (a, b), strict=True) if share]
    return Spread(math.sqrt(total), 1 / math.fsum(terms))


def paired_difference(
    a_items: Sequence[Item],
    b_items: Sequence[Item],
    metric_name: str,
    keys: Sequence[str],
    grouped_by: str | None = None,
) -> Paired | None:
    """The difference b − a of a metric that is made of items as `MetricValue.items` says; see `difference_of`."""
    return difference_of(*(item_numbers(items, metric_name, keys, grouped_by) for items in (a_items, b_items)))


def difference_of(a: Numbers, b: Numbers, *, drawn_from: int | None = None) -> Paired | None:
    """The difference b − a of a metric over the items that both have; None without a common item.

    Of one key the metric is the mean, its difference the mean of d_i = b_i − a_i. Of two keys it is the ratio of sums
    R = Σ num / Σ den, and its difference is linearised:

        d_i = (num_b,i − R_b · den_b,i) / mean(den_b) − (num_a,i − R_a · den_a,i) / mean(den_a)

    The errors are those of `_errors_of`. Items whose weight `den` is 0 on both sides do not count. `drawn_from`: the
    items are a sample without replacement of so many, N, and stderr² has the factor 1 − n / N; the exact tests and
    bounds of items that are right or wrong do without it, and are a little wide.

    Source: the linearised ratio of W. G. Cochran, Sampling Techniques, 3rd edition, section 6.4, applied to the
    difference of two ratios over one sample; 2.6 for the factor.
    """
    in_common = aligned(a, b)
    n_common = len(in_common[0].items)
    rows = [list(zip(*side.columns, strict=True)) for side in in_common]
    places = [at for at, (x, y) in enumerate(zip(*rows, strict=True)) if len(x) == 1 or x[1] or y[1]]
    if not places:
        return None
    pairs = [(rows[0][at], rows[1][at]) for at in places]
    one_key = len(a.columns) == 1
    value, parts = _mean_difference(pairs) if one_key else _ratio_difference(pairs)
    groups = None if in_common[0].groups is None else [in_common[0].groups[at] for at in places]
    n, (only_a, only_b) = len(pairs), (len(set(side.items)) - n_common for side in (a, b))
    found = Paired(value, None, n, None, only_a, only_b)
    if n < 2 or not all(map(math.isfinite, parts)):
        return found
    weights = None if one_key else [x[1] + y[1] for x, y in pairs]
    independent, spread = _errors_of(parts, weights, groups)
    if independent < n:
        found = replace(found, groups=independent)
    if spread is None:
        return found
    left = math.sqrt(1 - n / drawn_from) if drawn_from is not None and n < drawn_from else 1.0
    if one_key and found.groups is None and all({x, y} <= {0.0, 1.0} for (x,), (y,) in pairs):
        flips = Flips(mcnemar([x == 1 for (x,), _ in pairs], [y == 1 for _, (y,) in pairs]))
        return replace(found, spread=Spread(flips.stderr * left, n - 1), p=flips.counts.p, flips=flips)
    if max(parts) - min(parts) <= ALIKE * max(map(abs, parts)):
        p = min(1.0, 2.0 ** (1 - independent)) if any(parts) else 1.0
        return replace(found, spread=replace(spread, stderr=0.0), p=p)
    return replace(found, spread=replace(spread, stderr=spread.stderr * left))


def spread_of(numbers: Numbers) -> Spread | None:
    """Return the errors of a single value from its items: how uncertain its standard error is, and how lopsided.

    None with fewer than two independent items of some weight, or where a number is not finite.
    """
    rows = list(zip(*numbers.columns, strict=True))
    places = [at for at, row in enumerate(rows) if len(row) == 1 or row[1]]
    weighted = len(numbers.columns) > 1
    parts = _linearised([rows[at] for at in places])[1] if weighted else [rows[at][0] for at in places]
    if not all(map(math.isfinite, parts)):
        return None
    weights = [rows[at][1] for at in places] if weighted else None
    groups = None if numbers.groups is None else [numbers.groups[at] for at in places]
    return _errors_of(parts, weights, groups)[1]


def _errors_of(
    parts: Sequence[float], weights: Sequence[float] | None, groups: Sequence[Hashable] | None
) -> tuple[int, Spread | None]:
    """Return how many independent groups `parts` have, and the errors of the mean of the parts.

    With u_g the sum of d_i − mean(d) over the items of a group (without groups, of one item), G groups and n items,
    stderr² = G / (G − 1) · Σ u_g² / n². Where a few items have most of the weight, the error rests on them alone: with
    w_g the weight of a group (without weights, the number of its items) its degrees of freedom are those of the
    effective number of groups, (Σ w_g)² / Σ w_g², less one.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, 9A.1; L. Kish, Survey Sampling, 1965, section 11.7, for
    the effective number.
    """
    n = len(parts)
    mean = math.fsum(parts) / n if n else 0.0
    sums = group_sums([part - mean for part in parts], groups)
    independent = len(sums)
    if independent < 2:
        return independent, None
    stderr = math.sqrt(independent / (independent - 1) * math.fsum(total * total for total in sums)) / n
    heavy = group_sums([1.0] * n if weights is None else weights, groups)
    effective = math.fsum(heavy) ** 2 / math.fsum(weight * weight for weight in heavy)
    return independent, Spread(stderr, effective - 1, bend_of(sums))


def aligned(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """Both over the items that they have in common, in the order of a."""
    known = set(b.items)
    if len(known) == len(b.items) and a.items == b.items:
        return a, b
    common = [item for item in dict.fromkeys(a.items) if item in known]
    return a.among(common), b.among(common)


def judge(difference: float, p: float, level: float, direction: Direction) -> Judgement:
    """Say what a difference b − a of this two-sided p-value says of b at a level."""
    if math.isnan(difference) or difference == 0 or p > 1 - level:
        return "indistinguishable"
    if direction == "none":
        return "different"
    return "better" if (difference > 0) == (direction == "higher") else "worse"


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
    base: Sequence[float], values: Sequence[float], chance: float, level: float = LEVEL, factor: float = 1.0
) -> Interval | None:
    """Return Fieller's interval of the ratio of `ratio_of_centred`; None below `MIN_ITEMS`, and see `fieller_interval`.

    It is right also where the base is not far above chance. There the ratio is skewed, and ratio ± t · stderr misses on
    one side. `factor` is that of the standard errors of a sample without replacement, √(1 − n / N).
    """
    n = len(base)
    if n < MIN_ITEMS:
        return None
    x, y = (math.fsum(side) / n - chance for side in (values, base))
    sides = ((values, values), (values, base), (base, base))
    v_xx, v_xy, v_yy = (factor**2 * covariance_of_means(*two) for two in sides)
    return fieller_interval((x, y), (v_xx, v_xy, v_yy), n - 1, level)


def fieller_interval(
    means: tuple[float, float], covariances: tuple[float, float, float], dof: float, level: float = LEVEL
) -> Interval | None:
    """Return Fieller's interval of the ratio of two means x̄ / ȳ, given as (x̄, ȳ).

    With `covariances` (v_xx, v_xy, v_yy) of the two means, of `dof` degrees of freedom, and t the two-sided quantile
    of Student's distribution, it has all ρ with (x̄ − ρ ȳ)² ≤ t² (v_xx − 2 ρ v_xy + ρ² v_yy). None where that has no
    end: at this level ȳ might be zero, and then any ratio might be.

    Source: E. C. Fieller, Journal of the Royal Statistical Society B 16 (1954) 175–185.
    """
    (x, y), (v_xx, v_xy, v_yy) = means, covariances
    t2 = critical_value((1 - level) / 2, dof) ** 2
    a, b, c = y * y - t2 * v_yy, x * y - t2 * v_xy, x * x - t2 * v_xx
    if not a > 0:
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


def covariance_of_means(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the covariance of the means of paired values, at least two."""
    n = len(a)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    return math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (n * (n - 1))


def item_numbers(
    items: Sequence[Item], metric_name: str, keys: Sequence[str], grouped_by: str | None = None
) -> Numbers:
    """The numbers under `keys` of the items that the metric is made of; NaN and infinities may be strings.

    `grouped_by` is the key that names each item's group; an item without it is a group of its own.
    """
    benchmark = metric_name.partition("/")[0]
    chosen = [
        item
        for item in items
        if (item.get("benchmark", benchmark) == benchmark or is_share(keys))
        and all(item.get(key) is not None for key in ("index", *keys))
    ]
    columns = [[float(item[key]) for item in chosen] for key in keys]
    names = [(item.get("benchmark"), item["index"]) for item in chosen]
    groups = None if grouped_by is None else groups_of(names, [item.get(grouped_by) for item in chosen])
    return Numbers(names, columns, groups)


def is_share(keys: Sequence[str]) -> bool:
    """Say whether the keys are of linearised shares, which items of any benchmark have; see `MetricValue.items`."""
    return "/" in keys[0]


def groups_of(items: Sequence[tuple[Any, Any]], named: Sequence[Any]) -> list[Hashable]:
    """Return the group of each item: what its row names, with its benchmark, or the item itself."""
    pairs = zip(items, named, strict=True)
    return [("item", *item) if name is None else ("group", item[0], name) for item, name in pairs]


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
