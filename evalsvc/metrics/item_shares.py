"""Linearised shares of items: pairwise comparison of values that cover several benchmarks or are no mean.

To first order, a smooth function of means deviates from the truth by a sum with one part per item. The share of an item
is the value plus √(n (n − 1)) times the item's part: the mean of the n shares is the value, and the standard error of
the mean is that of the value.

Source: the delta method as the infinitesimal jackknife, L. A. Jaeckel, Bell Laboratories memorandum MM 72-1215-11
(1972); B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), section 21.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsvc.metrics.item_numbers import item_numbers
from evalsvc.spec.protocol import MetricValue

DIGITS = 7
"""Significant digits of the largest share; all shares of a value have the decimals of the largest."""

ItemName = tuple[Any, Any]
"""Fields `benchmark` and `index` of an item."""


@dataclass(frozen=True)
class Linear:
    """A value with the part of each item in its deviation from the truth."""

    value: float
    parts: Mapping[ItemName, float]
    """Part of each item. The parts sum to 0, and their squares sum to the squared standard error."""

    @property
    def stderr(self) -> float:
        """Standard error of `value`."""
        return math.hypot(*self.parts.values())

    def shares(self) -> dict[ItemName, float]:
        """Return the share of each item. The mean of the shares is `value`, with the standard error `stderr`."""
        n = len(self.parts)
        scale = math.sqrt(n * (n - 1))
        shares = {item: self.value + scale * part for item, part in self.parts.items()}
        largest = max(map(abs, shares.values()), default=0.0)
        if not largest:
            return shares
        decimals = DIGITS - 1 - math.floor(math.log10(largest))
        return {item: round(share, decimals) for item, share in shares.items()}


def finite_factor(n: int, drawn_from: int | None) -> float:
    """Return √(1 − n / N), the factor of the error of n items drawn from N without replacement; 1 where N is None.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, section 2.6.
    """
    return 1.0 if drawn_from is None else math.sqrt(max(0.0, 1 - n / drawn_from))


def linear_mean(
    items: Sequence[ItemName], sums: Sequence[float], counts: Sequence[float], drawn_from: int | None = None
) -> Linear | None:
    """Return Σ sums / Σ counts with the parts of the items. Counts of 1 give a mean.

    None below two items with weight, or where a number is not finite. The part of an item is √(n / (n − 1)) · (sum −
    ratio · count) / Σ counts, times √(1 − n / N) for a sample without replacement from N = `drawn_from` items.
    """
    rows = [row for row in zip(items, sums, counts, strict=True) if row[2]]
    n, weight = len(rows), math.fsum(counts)
    total = math.fsum(sums)
    if n < 2 or not weight or not math.isfinite(total) or not math.isfinite(weight):
        return None
    ratio = total / weight
    scale = math.sqrt(n / (n - 1)) / weight * finite_factor(n, drawn_from)
    return Linear(ratio, {item: scale * (part - ratio * count) for item, part, count in rows})


def linear_of(metric: MetricValue, items: Iterable[Mapping[str, object]]) -> Linear | None:
    """Return a metric with its parts by the task's items that `MetricValue.items` names; None where it names none."""
    if not metric.items:
        return None
    numbers = item_numbers(list(items), metric.name, metric.items)
    sums, *weights = numbers.columns
    counts = weights[0] if weights else [1.0] * len(sums)
    if not all(map(math.isfinite, (*sums, *counts))):
        return None
    mean = linear_mean(numbers.items, sums, counts, metric.drawn_from)
    if mean is None or metric.unit != "perplexity":
        return mean
    if not math.isfinite(metric.value):
        return None
    return Linear(metric.value, {item: metric.value * part for item, part in mean.parts.items()})


def keep_shares(name: str, value: Linear, items: Iterable[dict[str, object]]) -> tuple[str, ...]:
    """Store each item's share in the item under the metric's name; return `MetricValue.items`, empty without parts."""
    shares = value.shares()
    for item in items:
        share = shares.get((item["benchmark"], item["index"]))
        if share is not None:
            item[name] = share
    return (name,) if shares else ()


def combined(value: float, members: Iterable[tuple[float, Linear]]) -> Linear:
    """Return a value whose deviation is the weighted sum of the deviations of `members`, given as (weight, member)."""
    parts: dict[ItemName, float] = {}
    for weight, member in members:
        for item, part in member.parts.items():
            parts[item] = parts.get(item, 0.0) + weight * part
    return Linear(value, parts)
