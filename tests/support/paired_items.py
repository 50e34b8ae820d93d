"""What a metric is made of, for items that need no names of their own."""

from collections.abc import Hashable, Sequence

from evalsvc.metrics.item_numbers import Numbers


def numbers(*columns: Sequence[float], groups: Sequence[Hashable] | None = None) -> Numbers:
    """One column of a mean, two of a ratio; each item is named by its place."""
    return Numbers([(None, place) for place in range(len(columns[0]))], columns, groups)
