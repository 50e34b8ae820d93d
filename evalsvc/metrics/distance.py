"""Difference of two values, with its standard error, its basis and a judgement.

Two checkpoints are right and wrong on mostly the same questions, so the error of their difference over the same items
is far below the error that the standard errors of both values suggest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval, Spread, bend_of, require_level
from evalsvc.metrics.item_numbers import Numbers, aligned
from evalsvc.metrics.mcnemar import McNemar, mcnemar
from evalsvc.metrics.ratio import Ratio, exp_or_infinity
from evalsvc.metrics.shares import group_sums
from evalsvc.spec.documents.comparisons import Basis
from evalsvc.spec.protocol import Direction

ALIKE = 1e-12
"""Relative spread below which differences count as equal but for rounding."""

Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Numbers of each item on both sides."""

Judgement = Literal["better", "worse", "different", "indistinguishable"]
"""Judgement of b against a. `different` is for metrics without a better direction."""


@dataclass(frozen=True)
class Distance:
    """Difference b − a of two values, with its standard error and basis."""

    value: float
    """b − a, for pairs over the items that both sides have. 0 where both are equal, NaN and infinities included."""
    stderr: float | None
    """Standard error of the difference; None where `basis` is `none`."""
    basis: Basis
    """Basis of the standard error: paired items, independent values, or none."""
    n: int
    """Number of paired items; without pairs, the number of items of the smaller side."""
    lacking: tuple[Literal["a", "b"], ...] = ()
    """Sides whose value has no finite standard error, where `basis` is `none`."""
    groups: int | None = None
    """Number of independent groups among the `n` items; None if every item is independent."""
    n_only_a: int = 0
    """Number of items of `a` that `b` lacks, which are in no pair."""
    n_only_b: int = 0
    """Number of items of `b` that `a` lacks, which are in no pair."""
    p: float | None = None
    """Exact two-sided p-value of no difference: McNemar's for items that are right or wrong, or the sign test's."""
    spread: Spread | None = None
    """Errors of the estimate: the difference, or the difference of the logarithms; None where `basis` is `none`."""
    flips: McNemar | None = None
    """Counts of paired items that are right or wrong; None for other items."""
    log_a: float | None = None
    """Logarithm of a, for perplexities, whose `spread` is that of the difference of the logarithms."""

    @property
    def independent(self) -> int:
        """Number of independent items, or of independent groups of items, on which the error rests."""
        return self.n if self.groups is None else self.groups

    @property
    def has_bounds(self) -> bool:
        """Whether bounds of the difference are known: there are enough items, and the items vary."""
        if self.spread is None or self.spread.dof < 1 or self.independent < MIN_ITEMS or not math.isfinite(self.value):
            return False
        return self.flips is not None or self.spread.stderr > 0

    def reach(self, tail: float) -> tuple[float, float] | None:
        """Return the distances from `value` to the lower and upper bound, each missed with `tail`; None if unknown."""
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
        """Return the interval of the difference; None where no bounds are known. Raises as `require_level`."""
        require_level(level)
        reach = self.reach((1 - level) / 2)
        return None if reach is None else Interval(self.value - reach[0], self.value + reach[1], level)

    def p_value(self) -> float | None:
        """Return the two-sided p-value of no difference, ≤ 1 − level if `interval(level)` excludes zero; or None."""
        if self.p is not None:
            return self.p
        return None if not self.has_bounds or self.spread is None else self.spread.p_value(self._estimate)

    def verdict(self, level: float, direction: Direction) -> Judgement | None:
        """Return the judgement of b against a at this level; None where no p-value is known."""
        p = self.p_value()
        return None if p is None else judge(self.value, p, level, direction)

    def why_no_error(self, a: str, b: str) -> str:
        """Return why there is no interval between the sides named `a` and `b`; an empty string if there is one."""
        if len(self.lacking) == 1:
            known = b if self.lacking == ("a",) else a
            return f"only {known} has a standard error, and the error of one side is not the error of a difference"
        if self.lacking:
            return f"neither {a} nor {b} has a standard error"
        if self.basis == "none" or self.has_bounds or not math.isfinite(self.value):
            return ""
        if self.independent < MIN_ITEMS:
            counted = "items" if self.groups is None else "independent groups of items"
            return f"{self.independent} {counted} are too few, an interval needs {MIN_ITEMS}"
        if self.spread is not None and self.spread.dof < 1:
            return "one item has nearly all of the weight, so that the spread of items is not known"
        return "all items have the same difference, so that their spread is not known"

    @property
    def _estimate(self) -> float:
        if self.log_a is None:
            return self.value
        return math.log1p(self.value / math.exp(self.log_a))


def distance(
    a: Ratio, b: Ratio, pairs: tuple[Numbers, Numbers] | None = None, *, unit: str = "", drawn_from: int | None = None
) -> Distance:
    """Compute the difference of the value `b` from the value `a`, with its standard error and basis.

    `pairs` are the per-item numbers of the two values; the difference is over the items that both sides have. Without
    pairs, or where the pairs give no error, the error is √(a.stderr² + b.stderr²) of independent values, with Welch's
    degrees of freedom. For perplexities (`unit` is `perplexity`), whose pairs are those of the loss, the difference is
    computed on logarithms, so that a loss and its perplexity get the same judgement. `drawn_from` is the size of the
    set from which the items are a sample without replacement.

    Source: B. L. Welch, Biometrika 34 (1947) 28–35.
    """
    if unit == "perplexity" and all(0 < side.value < math.inf for side in (a, b)):
        return _of_logarithms(a, b, pairs, drawn_from)
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    value = 0.0 if equal else b.value - a.value
    paired = None if pairs is None else difference_of(*pairs, drawn_from=drawn_from)
    if paired is not None and paired.spread is not None and math.isfinite(value):
        # The values themselves have the least rounding, where no item is left out. Values that are infinite on both
        # sides, because of an item, say nothing about the other items.
        covers_all = math.isfinite(a.value) and not (paired.n_only_a or paired.n_only_b)
        return replace(paired, value=value if covers_all else paired.value)
    return _of_values(value, a, b)


def _of_values(value: float, a: Ratio, b: Ratio) -> Distance:
    smaller = min(a, b, key=lambda side: side.independent)
    sides: dict[Literal["a", "b"], Ratio] = {"a": a, "b": b}
    lacking = tuple(name for name, side in sides.items() if side.stderr is None or not math.isfinite(side.stderr))
    if lacking:
        return Distance(value, None, "none", smaller.n, lacking, smaller.groups)
    spread = _welch(a, b)
    return Distance(value, spread.stderr, "unpaired", smaller.n, groups=smaller.groups, spread=spread)


def _of_logarithms(a: Ratio, b: Ratio, pairs: tuple[Numbers, Numbers] | None, drawn_from: int | None) -> Distance:
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


def judge(difference: float, p: float, level: float, direction: Direction) -> Judgement:
    """Return the judgement of a difference b − a with this two-sided p-value at a level."""
    if math.isnan(difference) or difference == 0 or p > 1 - level:
        return "indistinguishable"
    if direction == "none":
        return "different"
    return "better" if (difference > 0) == (direction == "higher") else "worse"


def difference_of(a: Numbers, b: Numbers, *, drawn_from: int | None = None) -> Distance | None:
    """Compute the difference b − a of a metric over the items that both have; None without a common item.

    With one key, the metric is a mean, and the difference is the mean of d_i = b_i − a_i. With two keys, the metric is
    the ratio of sums R = Σ num / Σ den, and the difference is linearised:

        d_i = (num_b,i − R_b · den_b,i) / mean(den_b) − (num_a,i − R_a · den_a,i) / mean(den_a)

    The errors are those of `_errors_of`. Items whose weight `den` is 0 on both sides do not count. With `drawn_from`,
    the items are a sample without replacement from N = `drawn_from` items, and stderr² has the factor 1 − n / N; exact
    tests have no such factor.

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
    if one_key:  # values that are infinite on both sides are equal
        parts = [0.0 if x == y else y - x for (x,), (y,) in pairs]
        value = _mean(parts)
    else:
        (ratio_a, parts_a), (ratio_b, parts_b) = (_linearised(side) for side in zip(*pairs, strict=True))
        value, parts = ratio_b - ratio_a, [y - x for x, y in zip(parts_a, parts_b, strict=True)]
    groups = None if in_common[0].groups is None else [in_common[0].groups[at] for at in places]
    n, (only_a, only_b) = len(pairs), (len(set(side.items)) - n_common for side in (a, b))
    bare = Distance(value, None, "none", n, n_only_a=only_a, n_only_b=only_b)
    if n < 2 or not all(map(math.isfinite, parts)):
        return bare
    weights = None if one_key else [x[1] + y[1] for x, y in pairs]
    independent, spread = _errors_of(parts, weights, groups)
    if independent < n:
        bare = replace(bare, groups=independent)
    if spread is None:
        return bare
    left = math.sqrt(1 - n / drawn_from) if drawn_from is not None and n < drawn_from else 1.0
    if one_key and bare.groups is None and all({x, y} <= {0.0, 1.0} for (x,), (y,) in pairs):
        flips = mcnemar([x == 1 for (x,), _ in pairs], [y == 1 for _, (y,) in pairs])
        spread, bare = Spread(flips.stderr * left, n - 1), replace(bare, p=flips.p, flips=flips)
    elif max(parts) - min(parts) <= ALIKE * max(map(abs, parts)):
        p = min(1.0, 2.0 ** (1 - independent)) if any(parts) else 1.0
        spread, bare = replace(spread, stderr=0.0), replace(bare, p=p)
    else:
        spread = replace(spread, stderr=spread.stderr * left)
    return replace(bare, stderr=spread.stderr, basis="paired", spread=spread)


def spread_of(numbers: Numbers) -> Spread | None:
    """Return the errors of a value from its items; None below two independent items, or if one is not finite."""
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
    """Return the number of independent groups of `parts`, and the errors of the mean of the parts. With u_g the sum of
    d_i − mean(d) over the items of a group (without groups, of one item), G groups and n items, stderr² = G / (G − 1) ·
    Σ u_g² / n². With w_g the weight of a group (without weights, the number of its items), the degrees of freedom are
    the effective number of groups, (Σ w_g)² / Σ w_g², less one.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, 9A.1; L. Kish, Survey Sampling, 1965, section 11.7, for the
    effective number.
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


def _linearised(rows: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    weight = _mean([den for _, den in rows])
    if not weight:
        return math.nan, [math.nan] * len(rows)
    ratio = _mean([num for num, _ in rows]) / weight
    return ratio, [(num - ratio * den) / weight for num, den in rows]


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN where infinities of both signs meet, which `math.fsum` refuses."""
    total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    return total / len(values)
