"""What a metric is made of, from columns: the same as from the objects themselves, item by item."""

from typing import Any

import pytest
from gate_documents import result, value
from paired_items import paired_difference

from evalsvc.compare.result import Measured, Result, distance_between, paired_numbers
from evalsvc.files.items import ItemTable, pack_items
from evalsvc.metrics.item_numbers import aligned, item_numbers
from evalsvc.metrics.paired import difference_of

MESSY: list[dict[str, Any]] = [
    {"benchmark": "arc", "index": 0, "acc": 1, "bits": 2.5, "bytes": 4},
    {"benchmark": "arc", "index": 3, "acc": 0.0, "bits": "NaN", "bytes": 2},
    {"benchmark": "wsc", "index": 0, "acc": 1, "bits": 1.0, "bytes": 1},
    {"benchmark": "arc", "index": 1, "acc": None, "bits": 0.25, "bytes": 0},
    {"benchmark": "arc", "index": 9, "bits": "-Infinity", "bytes": 3, "text": ["x"]},
    {"index": 5, "acc": 0.5},
    {"benchmark": "arc", "acc": 1.0, "bits": 1.0, "bytes": 1},
]
KEYS = [("acc",), ("bits", "bytes"), ("nothing",), ("acc", "bytes")]


@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: "/".join(keys))
@pytest.mark.parametrize("name", ["arc/acc", "wsc/acc", "other/acc"])
def test_columns_give_the_numbers_of_the_objects(name: str, keys: tuple[str, ...]) -> None:
    metric = value(name, 1.0, items=keys)
    plain = result(metric, items={name.partition("/")[0]: MESSY})
    packed = Result(
        "packed", plain.document | {"items": {}}, dict.fromkeys(["arc", "wsc", "other"], lambda: _stored(MESSY))
    )
    slow = item_numbers(MESSY, name, keys)
    (written,) = plain.document["metrics"]
    for side in (plain, packed):
        assert repr(side.numbers(written)) == repr(slow), "by repr, since NaN equals nothing"


def _stored(items: list[dict[str, Any]]) -> ItemTable:
    return ItemTable.from_bytes(pack_items(items))


def test_pairs_in_another_order_are_the_same_pairs() -> None:
    """One side's shards may be merged in another order; by position every item would meet a stranger."""
    a = [{"index": index, "x": float(index % 3), "w": 1 + index % 2} for index in range(50)]
    b = [{"index": index, "x": float(index % 5), "w": 1 + index % 2} for index in reversed(range(50))]
    for keys in (("x",), ("x", "w")):
        fast = difference_of(
            *(item_numbers(side, "t/x", keys) for side in (a, sorted(b, key=lambda row: row["index"])))
        )
        assert paired_difference(a, b, "t/x", keys) == fast
    left, right = aligned(*(item_numbers(side, "t/x", ("x",)) for side in (a, b)))
    assert left.items == right.items
    assert right.columns == [[float(index % 5) for index in range(50)]]


def test_items_that_one_side_lacks_are_left_out_of_the_pairs() -> None:
    items = [{"index": index, "x": float(index)} for index in range(10)]
    sides = [result(value("t/x", 4.5, 0.1, items=("x",)), items={"t": rows}) for rows in (items, items[3:])]
    a, b = (Measured(side.document["metrics"][0], side) for side in sides)
    found = distance_between(a, b)
    assert (found.basis, found.n, found.n_only_a, found.n_only_b, found.value) == ("paired", 7, 3, 0, 0.0)


def test_numbers_of_other_groups_are_no_pairs() -> None:
    items = [{"index": index, "x": float(index), "image": index // 2} for index in range(10)]
    metric = value("t/x", 4.5, 0.1, items=("x",)).to_json() | {"task": "t"}
    sides = [result(value("t/x", 4.5, 0.1, items=("x",)), items={"t": items}) for _ in range(2)]
    grouped = Measured(metric | {"groups": 5, "grouped_by": "image"}, sides[0])
    assert paired_numbers(grouped, Measured(metric, sides[1])) is None
    pairs = paired_numbers(grouped, grouped)
    assert pairs is not None
    assert pairs[0].groups is not None
    assert len(set(pairs[0].groups)) == 5


def test_shares_count_in_rows_of_every_benchmark() -> None:
    items = [{"benchmark": name, "index": 0, "t/mean": share} for name, share in (("arc", 0.25), ("piqa", 0.75))]
    found = result(value("t/mean", 0.5, 0.1, items=("t/mean",)), items={"t": items})
    numbers = found.numbers(found.document["metrics"][0])
    assert numbers.items == [("arc", 0), ("piqa", 0)]
    assert numbers.columns == [[0.25, 0.75]]


def test_a_table_is_read_once_and_only_when_it_is_needed() -> None:
    read: list[str] = []

    def tables(name: str) -> Any:
        return lambda: read.append(name) or _stored(MESSY)

    metrics = [value("arc/acc", 1.0, items=("acc",)), value("arc/bits", 1.0, items=("bits", "bytes"))]
    found = Result("x", {"metrics": []}, {name: tables(name) for name in ("language", "loss")})
    for metric in metrics:
        found.numbers(metric.to_json() | {"task": "language"})
    assert read == ["language"]
