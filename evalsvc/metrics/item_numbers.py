"""Numbers of a metric per item, the matching of the items of two results, and linearised shares of items.

Shares compare values that cover several benchmarks, or are no mean, item by item. To first order, a smooth function of
means deviates from the truth by a sum with one part per item. The share of an item is the value plus √(n (n − 1)) times
the item's part: the mean of the n shares is the value, and the standard error of the mean is that of the value.

Source: the delta method as the infinitesimal jackknife, L. A. Jaeckel, Bell Laboratories memorandum MM 72-1215-11
(1972); B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), section 21.3.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsvc.spec.protocol import MetricValue

Item = Mapping[str, Any]
"""Record of a task for one item: `index`, `benchmark` where the task has several, and numbers; see `TaskResult`."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of a metric per item."""

    items: Sequence[tuple[Any, Any]]
    """Fields `benchmark` and `index` of each item, by which items are matched."""
    columns: Sequence[Sequence[float]]
    """Numbers per key of `MetricValue.items`, each as long as `items`."""
    groups: Sequence[Hashable] | None = None
    """Group of each item, where only different groups are independent; None if every item is independent."""

    def among(self, chosen: Sequence[tuple[Any, Any]]) -> Numbers:
        """Return the numbers of these items, in their order. Of an item that occurs twice, the last counts."""
        place = {item: position for position, item in enumerate(self.items)}
        positions = [place[item] for item in chosen]
        groups = None if self.groups is None else [self.groups[position] for position in positions]
        return Numbers(chosen, [[column[position] for position in positions] for column in self.columns], groups)


def item_numbers(
    items: Sequence[Item], metric_name: str, keys: Sequence[str], grouped_by: str | None = None
) -> Numbers:
    """Return the metric's numbers under `keys`, also from strings; an item without `grouped_by` is a group."""
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
    """Return whether the keys name linearised shares, which items of any benchmark have; see `MetricValue.items`."""
    return "/" in keys[0]


def groups_of(items: Sequence[tuple[Any, Any]], named: Sequence[Any]) -> list[Hashable]:
    """Return the group of each item: the named group with the item's benchmark, or the item alone."""
    pairs = zip(items, named, strict=True)
    return [("item", *item) if name is None else ("group", item[0], name) for item, name in pairs]


def aligned(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """Return both sides over their common items, in the order of a."""
    known = set(b.items)
    if len(known) == len(b.items) and a.items == b.items:
        return a, b
    common = [item for item in dict.fromkeys(a.items) if item in known]
    return a.among(common), b.among(common)


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
