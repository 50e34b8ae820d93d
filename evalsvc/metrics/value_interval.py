"""The interval of a value of a metric: the place where ends are computed for a single value, but for the quotient of
what is retained (`ratio`).

`with_intervals` runs where a task merges its items. The ends are stored with the value, and every table, page, chart
and client shows the stored ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

from evalsvc.metrics.definitions import Range, range_of
from evalsvc.metrics.distance import ALIKE, spread_of
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval, Spread, confidence_interval
from evalsvc.metrics.item_numbers import Item, Numbers, is_share, item_numbers
from evalsvc.metrics.ratio import Ratio, exp_or_infinity
from evalsvc.spec.protocol import MetricValue

LIMITS: Mapping[Range, tuple[float, float]] = {
    "any": (-math.inf, math.inf),
    "distance": (0.0, math.inf),
    "positive": (0.0, math.inf),
    "probability": (0.0, 1.0),
    "share": (0.0, 1.0),
}
"""Smallest and largest possible value of a metric, by its range."""


def with_intervals(metrics: Iterable[MetricValue], kind: str | None, items: Iterable[Item] = ()) -> list[MetricValue]:
    """Return a task's metrics with the ends of their intervals of level `LEVEL`; existing ends are kept."""
    by_benchmark: dict[object, list[Item]] = {}
    for item in items:
        by_benchmark.setdefault(item.get("benchmark"), []).append(item)
    return [metric if metric.ends else replace(metric, ends=_ends(metric, kind, by_benchmark)) for metric in metrics]


def ends_of(interval: Interval | None) -> tuple[float | None, float | None]:
    """Return the ends of an interval; None and None without an interval, or if an end is not finite."""
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None, None
    return interval.low, interval.high


def value_interval(ratio: Ratio, unit: str = "", of: Range = "any", numbers: Numbers | None = None) -> Interval | None:
    """Return the interval of a single value, from the numbers of its items where they are known.

    None without a standard error, below `MIN_ITEMS` independent items, and where all items are equal, which says
    nothing about the next item. Answers that are 1 or 0 are the exception: their share has Wilson's interval, with the
    number of independent items that gives the value's error, p (1 − p) / stderr². Any other value has Student's
    interval, corrected for skewness where the items are known. A mean of numbers that cannot be negative has this
    interval on the scale of logarithms. A perplexity has e to the ends of the interval of the loss. No interval leaves
    the range `of` the metric.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927) 209–212.
    """
    value, stderr, independent = ratio.value, ratio.stderr, ratio.independent
    if stderr is None or not ALIKE * abs(value) < stderr < math.inf or independent < MIN_ITEMS:
        return None
    if of == "share" and numbers is not None and _are_answers(numbers):
        return _wilson(value, stderr, independent)
    spread = (numbers and spread_of(numbers)) or Spread(stderr, independent - 1)
    if spread.dof < 1:
        return None
    if unit == "perplexity" and value > 0:
        loss = _within(math.log(value), replace(spread, stderr=stderr / value), "positive")
        return Interval(math.exp(loss.low), exp_or_infinity(loss.high), LEVEL)
    return _within(value, replace(spread, stderr=stderr), of)


def _within(value: float, spread: Spread, of: Range) -> Interval:
    """Return Student's interval within the range, on the scale of logarithms for means that cannot be negative."""
    low, high = LIMITS[of]
    if of in ("positive", "probability") and value > 0:
        log = confidence_interval(math.log(value), replace(spread, stderr=spread.stderr / value))
        return Interval(math.exp(log.low), min(high, exp_or_infinity(log.high)), LEVEL)
    interval = confidence_interval(value, spread)
    return replace(interval, low=max(low, interval.low), high=min(high, interval.high))


def _ends(
    metric: MetricValue, kind: str | None, items: Mapping[object, Sequence[Item]]
) -> tuple[float | None, float | None]:
    first, _, second = metric.name.partition("/")
    of, numbers = range_of(kind, second, metric.unit), None
    if metric.items:
        benchmarks = list(items) if is_share(metric.items) else [None, first]
        own = [item for benchmark in benchmarks for item in items.get(benchmark, ())]
        numbers = item_numbers(own, metric.name, metric.items, metric.grouped_by)
        if is_share(metric.items):  # With weights, since linearised shares that are all 1 or 0 are no answers.
            numbers = replace(numbers, columns=[*numbers.columns, [1.0] * len(numbers.items)])
    ratio = Ratio(metric.value, metric.stderr, metric.n, metric.groups)
    return ends_of(value_interval(ratio, metric.unit, of, numbers))


def _are_answers(numbers: Numbers) -> bool:
    alone = numbers.groups is None or len(set(numbers.groups)) == len(numbers.groups)
    return len(numbers.columns) == 1 and alone and set(numbers.columns[0]) <= {0.0, 1.0}


def _wilson(share: float, stderr: float, independent: int) -> Interval:
    n = share * (1 - share) / stderr**2 if 0 < share < 1 else independent
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - reach) if share else 0.0, min(1.0, centre + reach) if share < 1 else 1.0, LEVEL)
