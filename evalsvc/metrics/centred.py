"""Ratios of accuracies above chance, from two means over the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.shares import standard_error
from evalsvc.metrics.student import critical_value


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
