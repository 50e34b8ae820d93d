"""What each item adds to a value that is made of several benchmarks or is no mean, so that two such values compare
pairwise: the linearised shares of the items.

To first order, a smooth function of means deviates from the truth by a sum with one part for each item. The share of an
item is the value and √(n (n − 1)) times its part: the mean of the n shares is the value, and their standard error is
that of the value.

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
"""Significant digits of the largest share; all shares of a value have as many decimals as that one."""

ItemName = tuple[Any, Any]
"""`benchmark` and `index` of an item."""


@dataclass(frozen=True)
class Linear:
    """A value, and what each item adds to its deviation from the truth."""

    value: float
    parts: Mapping[ItemName, float]
    """The part of each item. Their sum is 0, and the sum of their squares is the squared standard error."""

    @property
    def stderr(self) -> float:
        """The standard error of `value`."""
        return math.hypot(*self.parts.values())

    def shares(self) -> dict[ItemName, float]:
        """Return the share of each item: their mean is `value`, and the standard error of that mean is `stderr`."""
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
    """Return Σ sums / Σ counts with the parts of the items; None below two items of some weight, or where a number is
    not finite. Counts of 1 make it a mean. `drawn_from`: the items are a sample without replacement of so many.

    The part of an item is √(n / (n − 1)) · (sum − ratio · count) / Σ counts, times √(1 − n / N) of a sample.
    """
    rows = [row for row in zip(items, sums, counts, strict=True) if row[2]]
    n, weight = len(rows), math.fsum(counts)
    total = math.fsum(sums)
    if n < 2 or not weight or not math.isfinite(total) or not math.isfinite(weight):
        return None
    ratio = total / weight
    scale = math.sqrt(n / (n - 1)) / weight * finite_factor(n, drawn_from)
    return Linear(ratio, {item: scale * (one - ratio * count) for item, one, count in rows})


def linear_of(metric: MetricValue, items: Iterable[Mapping[str, object]]) -> Linear | None:
    """Return a metric as its `items` say that it is made of the task's items; None where it is made of none."""
    if not metric.items:
        return None
    numbers = item_numbers(list(items), metric.name, metric.items)
    sums, *weights = numbers.columns
    counts = weights[0] if weights else [1.0] * len(sums)
    if not all(map(math.isfinite, (*sums, *counts))):
        return None
    found = linear_mean(numbers.items, sums, counts, metric.drawn_from)
    if found is None or metric.unit != "perplexity":
        return found
    if not math.isfinite(metric.value):
        return None
    return Linear(metric.value, {item: metric.value * part for item, part in found.parts.items()})


def keep_shares(name: str, value: Linear, items: Iterable[dict[str, object]]) -> tuple[str, ...]:
    """Put the share of each item into it, under the metric's name; return `MetricValue.items`, empty without a part."""
    shares = value.shares()
    for item in items:
        share = shares.get((item["benchmark"], item["index"]))
        if share is not None:
            item[name] = share
    return (name,) if shares else ()


def combined(value: float, members: Iterable[tuple[float, Linear]]) -> Linear:
    """Return a value whose deviation is the sum of those of `members`, each times its weight."""
    parts: dict[ItemName, float] = {}
    for weight, member in members:
        for item, part in member.parts.items():
            parts[item] = parts.get(item, 0.0) + weight * part
    return Linear(value, parts)
