"""Differences over the same items, with the error of paired values.

Two checkpoints are right and wrong on mostly the same questions, so the error of their difference is far below the
error that the standard errors of both values suggest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from evalsvc.metrics.intervals import Spread, bend_of
from evalsvc.metrics.item_numbers import Numbers, aligned
from evalsvc.metrics.mcnemar import Flips, mcnemar
from evalsvc.metrics.shares import group_sums

ALIKE = 1e-12
"""Relative spread below which differences count as equal but for rounding."""


Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Numbers of each item on both sides."""


@dataclass(frozen=True)
class Paired:
    """Difference b − a over the items that both sides have."""

    value: float
    spread: Spread | None
    """Errors of `value`; None with fewer than two independent items, or where a number is not finite."""
    n: int
    """Number of items of both sides with weight."""
    groups: int | None
    """Number of independent groups of these items; None if every item is independent."""
    n_only_a: int
    """Number of items of `a` that `b` lacks; `value` leaves these out."""
    n_only_b: int
    """Number of items of `b` that `a` lacks; `value` leaves these out."""
    p: float | None = None
    """Exact two-sided p-value of no difference: McNemar's for items that are right or wrong, or the sign test's."""
    flips: Flips | None = None
    """Counts of items that are right or wrong; None for other items."""

    @property
    def stderr(self) -> float | None:
        """Standard error of `value`."""
        return None if self.spread is None else self.spread.stderr


def difference_of(a: Numbers, b: Numbers, *, drawn_from: int | None = None) -> Paired | None:
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
    value, parts = _mean_difference(pairs) if one_key else _ratio_difference(pairs)
    groups = None if in_common[0].groups is None else [in_common[0].groups[at] for at in places]
    n, (only_a, only_b) = len(pairs), (len(set(side.items)) - n_common for side in (a, b))
    bare = Paired(value, None, n, None, only_a, only_b)
    known = n >= 2 and all(map(math.isfinite, parts))
    return _with_errors(bare, pairs, parts, groups, drawn_from) if known else bare


def _with_errors(
    bare: Paired,
    pairs: Pairs,
    parts: Sequence[float],
    groups: Sequence[Hashable] | None,
    drawn_from: int | None,
) -> Paired:
    n, one_key = len(pairs), len(pairs[0][0]) == 1
    weights = None if one_key else [x[1] + y[1] for x, y in pairs]
    independent, spread = _errors_of(parts, weights, groups)
    if independent < n:
        bare = replace(bare, groups=independent)
    if spread is None:
        return bare
    left = math.sqrt(1 - n / drawn_from) if drawn_from is not None and n < drawn_from else 1.0
    if one_key and bare.groups is None and all({x, y} <= {0.0, 1.0} for (x,), (y,) in pairs):
        flips = Flips(mcnemar([x == 1 for (x,), _ in pairs], [y == 1 for _, (y,) in pairs]))
        return replace(bare, spread=Spread(flips.stderr * left, n - 1), p=flips.counts.p, flips=flips)
    if max(parts) - min(parts) <= ALIKE * max(map(abs, parts)):
        p = min(1.0, 2.0 ** (1 - independent)) if any(parts) else 1.0
        return replace(bare, spread=replace(spread, stderr=0.0), p=p)
    return replace(bare, spread=replace(spread, stderr=spread.stderr * left))


def spread_of(numbers: Numbers) -> Spread | None:
    """Return the errors of a single value from its items: standard error, degrees of freedom and skewness.

    None with fewer than two independent items with weight, or where a number is not finite.
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
    """Return the number of independent groups of `parts`, and the errors of the mean of the parts.

    With u_g the sum of d_i − mean(d) over the items of a group (without groups, of one item), G groups and n items,
    stderr² = G / (G − 1) · Σ u_g² / n². With w_g the weight of a group (without weights, the number of its items), the
    degrees of freedom are the effective number of groups, (Σ w_g)² / Σ w_g², less one.

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


def _mean_difference(pairs: Pairs) -> tuple[float, list[float]]:
    # Values that are infinite on both sides are equal.
    parts = [0.0 if a == b else b - a for (a,), (b,) in pairs]
    return _mean(parts), parts


def _ratio_difference(pairs: Pairs) -> tuple[float, list[float]]:
    ratio_a, parts_a = _linearised([a for a, _ in pairs])
    ratio_b, parts_b = _linearised([b for _, b in pairs])
    return ratio_b - ratio_a, [b - a for a, b in zip(parts_a, parts_b, strict=True)]


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
