"""What a metric is made of, from columns: the same as from the objects themselves, item by item."""

from dataclasses import replace
from typing import Any

import pytest
from gate_documents import result, value

from evalsvc.compare.contrast import paired_numbers
from evalsvc.compare.result import Measured, Result
from evalsvc.errors import InvalidData
from evalsvc.files.items import ItemTable, pack_items
from evalsvc.metrics.item_numbers import item_numbers

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
        "packed", replace(plain.document, items={}), dict.fromkeys(["arc", "wsc", "other"], lambda: _stored(MESSY))
    )
    slow = item_numbers(MESSY, name, keys)
    (written,) = plain.document.metrics
    for side in (plain, packed):
        assert repr(side.numbers(written)) == repr(slow), "by repr, since NaN equals nothing"


def _stored(items: list[dict[str, Any]]) -> ItemTable:
    return ItemTable.from_bytes(pack_items(items))


def test_numbers_of_other_groups_are_no_pairs() -> None:
    items = [{"index": index, "x": float(index), "image": index // 2} for index in range(10)]
    sides = [result(value("t/x", 4.5, 0.1, items=("x",)), items={"t": items}) for _ in range(2)]
    [metric] = sides[0].document.metrics
    grouped = Measured(replace(metric, groups=5, grouped_by="image"), sides[0])
    assert paired_numbers(grouped, Measured(metric, sides[1])) is None
    pairs = paired_numbers(grouped, grouped)
    assert pairs is not None
    assert pairs[0].groups is not None
    assert len(set(pairs[0].groups)) == 5


def test_shares_count_in_rows_of_every_benchmark() -> None:
    items = [{"benchmark": name, "index": 0, "t/mean": share} for name, share in (("arc", 0.25), ("piqa", 0.75))]
    found = result(value("t/mean", 0.5, 0.1, items=("t/mean",)), items={"t": items})
    numbers = found.numbers(found.document.metrics[0])
    assert numbers.items == [("arc", 0), ("piqa", 0)]
    assert numbers.columns == [[0.25, 0.75]]


def test_two_tasks_with_one_benchmark_are_kept_apart() -> None:
    """At zero and at five shots a benchmark has the same name and the same items."""
    metric = value("arc/acc", 0.5, items=("acc",))
    items = {task: [{"benchmark": "arc", "index": 0, "acc": right}] for task, right in (("zero", 0), ("five", 1))}
    found = result(metric, items=items)
    numbers = [found.numbers(replace(found.document.metrics[0], task=task)).columns for task in ("zero", "five")]
    assert numbers == [[[0.0]], [[1.0]]]


def test_items_that_are_no_numbers() -> None:
    found = result(value("a/b", 1.0, items=("nll",)), items={"a": [{"index": 0, "nll": "word"}]}, name="wrong.json")
    with pytest.raises(InvalidData, match=r"wrong\.json: the results per item of task 'a' have values under nll"):
        found.numbers(found.document.metrics[0])


def test_a_table_is_read_once_and_only_when_it_is_needed() -> None:
    read: list[str] = []

    def tables(name: str) -> Any:
        return lambda: read.append(name) or _stored(MESSY)

    metrics = [value("arc/acc", 1.0, items=("acc",)), value("arc/bits", 1.0, items=("bits", "bytes"))]
    document = result(*metrics, task="language").document
    found = Result("x", document, {name: tables(name) for name in ("language", "loss")})
    for metric in document.metrics:
        found.numbers(metric)
    assert read == ["language"]
