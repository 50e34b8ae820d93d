"""Items of metrics: what a value is made of, and the value by the definition of `MetricValue.items`."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from evalsvc.metrics.item_numbers import Numbers


def value_of_items(metric: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> float:
    """`metric` as JSON; must equal its value, else a paired error would be that of another number."""
    benchmark = metric["name"].partition("/")[0]
    total, *count = metric["items"]
    shares = "/" in total  # of items of any benchmark
    chosen = [item for item in items if (shares or item.get("benchmark", benchmark) == benchmark) and total in item]
    assert len({(item.get("benchmark"), item["index"]) for item in chosen}) == len(chosen) > 0
    weights = [item[count[0]] for item in chosen] if count else [1] * len(chosen)
    value = sum(float(item[total]) for item in chosen) / sum(weights)
    return math.exp(value) if metric["unit"] == "perplexity" else value


def numbers(*columns: Sequence[float], groups: Sequence[Hashable] | None = None) -> Numbers:
    """One column of a mean, two of a ratio; each item is named by its place."""
    return Numbers([(None, place) for place in range(len(columns[0]))], columns, groups)
