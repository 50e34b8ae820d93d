"""Numbers of a metric per item, and the matching of the items of two results."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Return the numbers under `keys` of the metric's items; NaN and infinities may be strings.

    `grouped_by` is the key that names each item's group; an item without the key is a separate group.
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
