"""Differences of a metric from two lists of items, as tasks return them."""

from collections.abc import Sequence

from evalsvc.metrics.item_numbers import Item, item_numbers
from evalsvc.metrics.paired import Paired, difference_of


def paired_difference(
    a_items: Sequence[Item],
    b_items: Sequence[Item],
    metric_name: str,
    keys: Sequence[str],
    grouped_by: str | None = None,
) -> Paired | None:
    """The difference b − a of a metric that is made of items as `MetricValue.items` says; see `difference_of`."""
    return difference_of(*(item_numbers(items, metric_name, keys, grouped_by) for items in (a_items, b_items)))
