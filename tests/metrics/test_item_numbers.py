"""Which items a metric is made of, and how those of two results match."""

import math

from evalsvc.metrics.item_numbers import Numbers, aligned, item_numbers


def test_only_the_metrics_own_benchmark_counts() -> None:
    """Two benchmarks of one task both have an item 0; shares are of items of every benchmark."""
    rows = [
        {"benchmark": name, "index": 0, "acc": place, "t/mean": place} for place, name in enumerate(("arc", "piqa"))
    ]
    assert item_numbers(rows, "piqa/acc", ["acc"]) == Numbers([("piqa", 0)], [[1.0]])
    assert item_numbers(rows, "t/mean", ["t/mean"]) == Numbers([("arc", 0), ("piqa", 0)], [[0.0, 1.0]])


def test_items_without_the_key_or_an_index_do_not_count() -> None:
    """Items come out of JSON, where NaN and infinities are strings."""
    rows = [
        {"index": 0, "acc": 1},
        {"index": 1, "acc": "-Infinity"},
        {"index": 2},
        {"index": 3, "acc": None},
        {"acc": 1},
    ]
    assert item_numbers(rows, "arc/acc", ["acc"]) == Numbers([(None, 0), (None, 1)], [[1.0, -math.inf]])


def test_the_group_of_an_item_is_named_by_its_row() -> None:
    rows = [{"index": place, "x": float(place), "image": place // 2} for place in range(6)]
    rows += [{"index": 6, "x": 1.0}, {"index": 7, "x": 1.0}]
    found = item_numbers(rows, "t/x", ["x"], "image")
    assert found.groups is not None
    assert len(set(found.groups)) == 5, "a row that names none is a group of its own"


def test_pairs_in_another_order_are_the_same_pairs() -> None:
    """One side's shards may be merged in another order; by position every item would meet a stranger."""
    a = Numbers([(None, 0), (None, 1), (None, 2)], [[1.0, 2.0, 3.0]])
    b = Numbers([(None, 9), (None, 2), (None, 1)], [[9.0, 30.0, 20.0]], ["c", "b", "a"])
    common = [(None, 1), (None, 2)]
    assert aligned(a, b) == (Numbers(common, [[2.0, 3.0]]), Numbers(common, [[20.0, 30.0]], ["a", "b"]))
