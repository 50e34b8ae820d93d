"""Results from files, and their items."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from gate_documents import document, result, value

from evalsvc.compare import source
from evalsvc.compare.contrast import paired_numbers
from evalsvc.compare.result import Measured, Result
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import InvalidData
from evalsvc.files.items import ItemTable, pack_items
from evalsvc.metrics.item_numbers import Numbers, item_numbers

FILES = Service(None)
"""Files need no service."""

METRIC = value("a/b", 1.0).to_json()

WRONG_FIELDS: list[dict[str, Any]] = [
    *({"name": 3}, {"value": None}, {"stderr": "small"}, {"n": None}, {"n": "many"}, {"direction": "sideways"}),
    *({key: "a\n::error::b"} for key in ("name", "unit", "task", "protocol", "grouped_by")),
    *({"items": ["a\nb"]}, {"name": "\u202e"}),
    *({"protocol": [1]}, {"unit": None}, {"items": "x"}, {"items": [1]}, {"items": ["x", "y", "z"]}, {"task": [1]}),
    *({"n": -1}, {"n": 10**400}, {"n": True}, {"n": 3.0}, {"groups": 10**400}, {"drawn_from": 10**400}),
    *({"value": 10**400}, {"stderr": 10**400}, {"stderr": 1e308}, {"value": "1e3"}, {"value": True}, {"name": None}),
    *(
        {"low": low, "high": high}
        for low, high in ((2, 1), (10**400, None), (-math.inf, 1), (0.8, None), (math.nan, 1))
    ),
]


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(depth):
        content = {"x": content}
    return content


WRONG_PARTS: list[dict[str, Any]] = [
    *({"metrics": 3}, {"metrics": [{"name": "a/b"}]}, *({"metrics": [METRIC | wrong]} for wrong in WRONG_FIELDS)),
    *({"protocols": wrong} for wrong in ([1], {"x": 1}, {"x": nested(300)})),
    *({"errors": wrong} for wrong in ([1], {"a": {}})),
    *({"errors": {"a\nb": {"code": "a", "message": "b"}}}, {"protocols": {"a\nb": {}}}, {"items": {"a\nb": []}}),
    *({"items": [1]}, {"items": {"a": [1]}}, {"items": {"a": [{"index": [0]}]}}),
]


def test_what_is_not_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wrong.json"
    for text in ("", "{", "[" * 9999):
        path.write_text(text)
        with pytest.raises(InvalidData, match=r"wrong\.json is not JSON"):
            read_result(str(path), FILES)
    for content in ([1], *(document(value("a/b", 1.0)) | wrong for wrong in WRONG_PARTS)):
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidData, match=r"wrong\.json is no result of `evalsvc run") as error:
            read_result(str(path), FILES)
        assert "\n" not in error.value.message
    monkeypatch.setattr(source, "MAX_BYTES", 64)
    with pytest.raises(InvalidData, match=r"wrong\.json has more than 64 bytes"):
        read_result(str(path), FILES)
    with pytest.raises(InvalidData, match="cannot be read: is a directory"):
        read_result(str(tmp_path), FILES)


def test_the_error_of_a_task_is_one_line(tmp_path: Path) -> None:
    """A line of a stranger's file that begins with `::` is a command to the runner of a workflow."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(errors={"a": "x\n::error::y\x1b[2J"})))
    assert read_result(str(path), FILES).error("a").message == r"x\x0a::error::y\x1b[2J"


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
    tables = dict.fromkeys(["arc", "wsc", "other"], lambda: _stored(MESSY))
    packed = Result("packed", plain.document.model_copy(update={"items": {}}), tables)
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
    grouped = Measured(metric.model_copy(update={"groups": 5, "grouped_by": "image"}), sides[0])
    assert paired_numbers(grouped, Measured(metric, sides[1])) is None
    assert len(set(paired_numbers(grouped, grouped)[0].groups)) == 5


def test_shares_count_in_rows_of_every_benchmark() -> None:
    items = [{"benchmark": name, "index": 0, "t/mean": share} for name, share in (("arc", 0.25), ("piqa", 0.75))]
    found = result(value("t/mean", 0.5, 0.1, items=("t/mean",)), items={"t": items})
    assert found.numbers(found.document.metrics[0]) == Numbers([("arc", 0), ("piqa", 0)], [[0.25, 0.75]])


def test_two_tasks_with_one_benchmark_are_kept_apart() -> None:
    """At zero and at five shots a benchmark has the same name and the same items."""
    metric = value("arc/acc", 0.5, items=("acc",))
    items = {task: [{"benchmark": "arc", "index": 0, "acc": right}] for task, right in (("zero", 0), ("five", 1))}
    found = result(metric, items=items)
    [written] = found.document.metrics
    numbers = [found.numbers(written.model_copy(update={"task": task})).columns for task in ("zero", "five")]
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
