"""Ratios of sums, such as means over tokens, and of accuracies above chance, with their errors over items."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval, critical_value
from evalsvc.metrics.shares import group_sums, share_stderr, standard_error
from evalsvc.spec.protocol import Direction, MetricValue, Protocol


@dataclass(frozen=True)
class Ratio:
    """A value with its standard error and the number of items behind it."""

    value: float
    stderr: float | None
    """Standard error; None with fewer than two independent items."""
    n: int
    groups: int | None = None
    """Number of independent groups of items, such as the captions of one image; None if every item is independent."""

    @property
    def independent(self) -> int:
        """Number of independent items, or of independent groups of items."""
        return self.n if self.groups is None else self.groups

    def as_metric(
        self,
        name: str,
        unit: str,
        direction: Direction,
        protocol: Protocol,
        baseline: float | None = None,
        items: tuple[str, ...] = (),
        grouped_by: str | None = None,
    ) -> MetricValue:
        """Return the value as a metric, with the arguments of `MetricValue`."""
        number = self.value, self.stderr, self.n
        return MetricValue(name, *number, unit, direction, protocol, baseline, items, self.groups, grouped_by)


def ratio_of_sums(
    sums: Sequence[float], counts: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Ratio | None:
    """Return the ratio R = Σ sums / Σ counts with its standard error; None if every count is 0.

    A mean loss per token is such a ratio: `sums` are the items' summed losses, `counts` their tokens. The error is over
    items, or over groups where `groups` names a group for each item. With u_g the sum of sums_i - R · counts_i over the
    items of a group, and G groups with tokens, the linearised ratio has the error:

        stderr² = G / (G - 1) · Σ u_g² / (Σ counts)²

    Items that are all 1, or all 0, of count 1 are a share; see `shares.share_stderr`.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, section 6.4 (ratio estimate from a simple random sample,
    without the finite population correction), and 9A.1 for groups.
    """
    places = [place for place, count in enumerate(counts) if count]
    rows = [(sums[place], counts[place]) for place in places]
    if len(sums) != len(counts):
        raise ValueError(f"{len(sums)} sums and {len(counts)} counts; give one count per sum")
    weight = math.fsum(count for _, count in rows)
    if not rows:
        return None
    value = math.fsum(total for total, _ in rows) / weight
    n = len(rows)
    named = None if groups is None else [groups[place] for place in places]
    parts = group_sums([total - value * count for total, count in rows], named)
    independent = len(parts)
    group_count = independent if independent < n else None
    if independent < 2:
        return Ratio(value, None, n, group_count)
    if value in (0, 1) and set(rows) == {(value, 1)}:
        return Ratio(value, share_stderr(value * independent, independent), n, group_count)
    squares = math.fsum(part**2 for part in parts)
    return Ratio(value, math.sqrt(independent / (independent - 1) * squares) / weight, n, group_count)


def mean_of(ratios: Sequence[Ratio]) -> Ratio | None:
    """Return the mean of independent values, stderr² = Σ stderr_k² / K²; no error if a value has none."""
    if not ratios:
        return None
    errors = [ratio.stderr for ratio in ratios if ratio.stderr is not None]
    stderr = math.hypot(*errors) / len(ratios) if len(errors) == len(ratios) else None
    return Ratio(math.fsum(ratio.value for ratio in ratios) / len(ratios), stderr, sum(ratio.n for ratio in ratios))


@dataclass(frozen=True)
class Moments:
    """Sums over n independent items with tokens, of each item's sum x and count c. Moments of two parts add up."""

    n: float
    c: float
    x: float
    cc: float
    cx: float
    xx: float

    def ratio(self) -> Ratio | None:
        """Return the items' `ratio_of_sums`; an error below 1e-8 of the value is lost in rounding, and may be 0."""
        if not self.c:
            return None
        value = self.x / self.c
        if self.n < 2:
            return Ratio(value, None, int(self.n))
        squares = max(self.xx - 2 * value * self.cx + value**2 * self.cc, 0.0)
        return Ratio(value, math.sqrt(self.n / (self.n - 1) * squares) / self.c, int(self.n))


def perplexity(loss: Ratio) -> Ratio:
    """Return exp of a mean loss L in nats with the error exp(L) · stderr(L); infinity where exp overflows."""
    value = exp_or_infinity(loss.value)
    return Ratio(value, None if loss.stderr is None else value * loss.stderr, loss.n, loss.groups)


def exp_or_infinity(value: float) -> float:
    """Return e to the `value`; infinity where the result overflows float64."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def ratio_of_centred(base: Sequence[float], values: Sequence[float], chance: float) -> Ratio | None:
    """Return the share of an accuracy above chance that is left: (mean(values) − r) / (mean(base) − r), r = `chance`.

    `base` and `values` are paired by position. The standard error is that of the linearised ratio ρ, with d_i =
    (values_i − r − ρ · (base_i − r)) / (mean(base) − r). The error is valid only where the base is well above chance.
    None without items, or where the base is exactly at chance.
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
    """Return Fieller's interval of `ratio_of_centred`; None below `MIN_ITEMS` items, and as `fieller_interval`.

    The interval is valid also where the base is near chance and the ratio is skewed. `factor` scales the standard
    errors of a sample without replacement: √(1 − n / N).
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
    """Return Fieller's interval of the ratio x̄ / ȳ of two means, given as (x̄, ȳ).

    `covariances` are (v_xx, v_xy, v_yy) of the two means, with `dof` degrees of freedom. With t the two-sided quantile
    of Student's distribution, the interval holds every ρ with (x̄ − ρ ȳ)² ≤ t² (v_xx − 2 ρ v_xy + ρ² v_yy). None where
    the interval has no end: if ȳ might be zero at this level, the ratio might have any value.

    Source: E. C. Fieller, Journal of the Royal Statistical Society B 16 (1954) 175–185.
    """
    (x, y), (v_xx, v_xy, v_yy) = means, covariances
    t2 = critical_value((1 - level) / 2, dof) ** 2
    a, b, c = y * y - t2 * v_yy, x * y - t2 * v_xy, x * x - t2 * v_xx
    if not a > 0:
        return None
    reach = math.sqrt(max(0.0, b * b - a * c))
    return Interval((b - reach) / a, (b + reach) / a, level)


def covariance_of_means(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the covariance of the means of at least two paired values."""
    n = len(a)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    return math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (n * (n - 1))
