"""Rows as lines of JSON: exact for every kind of column, and nothing else is taken for a row."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from evalsvc.store.backup import rows
from evalsvc.store.backup.manifest import Kind
from evalsvc.store.backup.rows import Columns, chunks_of, dump_rows, load_rows

EVERY_KIND: dict[str, Kind] = {
    "id": "integer",
    "flag": "boolean",
    "content": "bytes",
    "document": "json",
    "value": "number",
    "name": "text",
    "moment": "time",
}
COLUMNS = Columns("things", EVERY_KIND, ("id",))
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def test_every_kind_comes_back_exactly() -> None:
    given: list[dict[str, Any]] = [
        {"id": 2, "flag": True, "content": bytes(range(256)), "document": {"z": [1, {"a": None}], "a": "\x00🙂"}}
        | {"value": 0.1 + 0.2, "name": 'a\r\n\u2028"\\ä', "moment": MOMENT},
        {"id": -(2**63), "flag": False, "content": b"", "document": [], "value": -5e-324, "name": "", "moment": MOMENT},
        dict.fromkeys(EVERY_KIND) | {"id": 2**63 - 1},
    ]
    engine = sa.create_engine("sqlite://")
    table = COLUMNS.clause()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE things ({', '.join(EVERY_KIND)})")
        connection.execute(sa.insert(table), given)
        assert connection.exec_driver_sql("SELECT document FROM things WHERE flag IS NULL").scalar_one() is None
        lines = list(dump_rows(connection, COLUMNS))
    engine.dispose()
    assert load_rows(COLUMNS, b"".join(lines)) == [given[1], given[0], given[2]]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "1"),
        ("id", 1.0),
        ("id", True),
        ("id", 2**63),
        ("flag", 1),
        ("content", "not base64"),
        ("content", "ä"),
        ("content", [1]),
        ("value", "0.1"),
        ("value", True),
        ("name", 1),
        ("moment", "2026-01-02T03:04:05"),
        ("moment", "yesterday"),
        ("moment", 5),
    ],
)
def test_a_value_of_another_kind(column: str, value: Any) -> None:
    row = dict.fromkeys(EVERY_KIND) | {column: value}
    with pytest.raises(ValueError, match=rf"line 2: the value of things.{column} is not of kind {EVERY_KIND[column]}"):
        load_rows(COLUMNS, json.dumps([None] * 7).encode() + b"\n" + json.dumps(list(row.values())).encode())


def test_times_are_of_utc_whatever_zone_they_are_written_in() -> None:
    other = MOMENT.astimezone(timezone(timedelta(hours=5)))
    [row] = load_rows(COLUMNS, json.dumps([*[None] * 6, other.isoformat()]).encode())
    assert (row["moment"], row["moment"].tzinfo) == (MOMENT, UTC)


def test_chunks_are_bounded_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 10)
    assert list(chunks_of([b"1234\n", b"1234\n", b"123456789012\n", b"1\n"])) == [
        (b"1234\n1234\n", 2),
        (b"123456789012\n", 1),
        (b"1\n", 1),
    ]
    assert list(chunks_of([])) == []
