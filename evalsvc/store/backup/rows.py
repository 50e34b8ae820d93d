"""Rows of tables as lines of JSON, in the same format for SQLite and PostgreSQL.

Columns are read from the database, not from `store.tables`, because the database may have an older schema.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.types import Boolean, DateTime, Float, Integer, LargeBinary, String, TypeEngine

from evalsvc.store.backup.manifest import LARGEST_ID, Kind
from evalsvc.store.tables import Base, Json, UtcDateTime

CHUNK = 4 << 20
"""Bytes of rows after which a new member of the archive begins."""

MAX_CHUNK = 64 << 20
"""The most bytes of a member with rows. A member may exceed CHUNK by one row, which is never split."""

AT_ONCE = 500
"""The number of rows in one read or insert."""

STREAMED = {"yield_per": AT_ONCE}
"""Execution options of queries with many rows: at most AT_ONCE rows are in memory."""

_KINDS: list[tuple[type[TypeEngine[Any]], Kind]] = [
    (sa.JSON, "json"),
    (Boolean, "boolean"),
    (DateTime, "time"),
    (LargeBinary, "bytes"),
    (Integer, "integer"),
    (sa.Numeric, "number"),
    (Float, "number"),
    (String, "text"),
]
"""Kinds by the types that the database reports. Subclasses come before their base classes."""

_TYPES: dict[Kind, TypeEngine[Any]] = {
    "json": Json,
    "boolean": Boolean(),
    "time": UtcDateTime(),
    "bytes": LargeBinary(),
    "integer": sa.BigInteger(),
    "number": Float(53),
    "text": sa.Text(),
}


@dataclass(frozen=True)
class Columns:
    """The columns of a table in the database."""

    table: str
    kinds: Mapping[str, Kind]
    """The kind of each column by name, in the database's order."""
    key: tuple[str, ...]
    """The columns of the primary key."""

    def clause(self) -> sa.TableClause:
        """Return the table as a clause for SQL statements."""
        return sa.table(self.table, *(sa.column(name, _TYPES[kind]) for name, kind in self.kinds.items()))


def read_schema(connection: Connection) -> dict[str, Columns]:
    """Return evalsvc's tables in the database, each after the tables that its foreign keys refer to."""
    inspector = sa.inspect(connection)
    present = set(inspector.get_table_names())
    return {
        table.name: Columns(
            table.name,
            {column["name"]: _kind_of(column["type"]) for column in inspector.get_columns(table.name)},
            tuple(inspector.get_pk_constraint(table.name)["constrained_columns"]),
        )
        for table in Base.metadata.sorted_tables
        if table.name in present
    }


def _kind_of(reported: object) -> Kind:
    return next(kind for type_, kind in _KINDS if isinstance(reported, type_))


def dump_rows(connection: Connection, columns: Columns) -> Iterator[bytes]:
    """Yield each row of a table as a line of JSON, in the order of the primary key."""
    table = columns.clause()
    query = sa.select(table).order_by(*(table.c[name] for name in columns.key))
    rows = connection.execute(query, execution_options=STREAMED)
    writers = [_WRITERS.get(kind) for kind in columns.kinds.values()]
    for row in rows:
        values = [
            value if writer is None or value is None else writer(value)
            for value, writer in zip(row, writers, strict=True)
        ]
        yield json.dumps(values, separators=(",", ":")).encode() + b"\n"


def chunks_of(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield chunks of joined lines with their number of lines. Every chunk but the last has at least CHUNK bytes."""
    joined: list[bytes] = []
    size = 0
    for line in lines:
        joined.append(line)
        size += len(line)
        if size >= CHUNK:
            yield b"".join(joined), len(joined)
            joined, size = [], 0
    if joined:
        yield b"".join(joined), len(joined)


def load_rows(columns: Columns, content: bytes) -> list[dict[str, object]]:
    """Return the rows in lines of `dump_rows`, as values by column.

    Raises:
        ValueError: a line does not have the table's columns, or a value does not have its column's type.
    """
    return [_load_row(columns, number, line) for number, line in enumerate(content.splitlines(), 1)]


def _load_row(columns: Columns, number: int, line: bytes) -> dict[str, object]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"line {number} is not JSON") from None
    if not isinstance(values, list) or len(values) != len(columns.kinds):
        raise ValueError(f"line {number} does not have the {len(columns.kinds)} columns of table {columns.table}")
    row = {}
    for (name, kind), value in zip(columns.kinds.items(), values, strict=True):
        try:
            row[name] = None if value is None else _read_value(kind, value)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"line {number}: the value of {columns.table}.{name} is not of kind {kind}") from None
    return row


_JSON_TYPES: Mapping[Kind, Collection[type]] = {
    "boolean": (bool,),
    "bytes": (str,),
    "integer": (int,),
    "number": (int, float),
    "text": (str,),
    "time": (str,),
}
"""Types of a kind's values in JSON. A value of the kind `json` may have any type."""


def _read_value(kind: Kind, value: object) -> object:
    """Return a value of a line as the value to insert.

    Raises:
        ValueError, TypeError, OverflowError: the value is not of this kind.
    """
    if kind != "json" and type(value) not in _JSON_TYPES[kind]:
        raise TypeError
    return _READERS[kind](value) if kind in _READERS else value


def _read_integer(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError
    return value


def _read_time(value: str) -> datetime:
    time = datetime.fromisoformat(value)
    if time.utcoffset() is None:
        raise ValueError
    return time.astimezone(UTC)


_READERS: Mapping[Kind, Callable[[Any], object]] = {
    "bytes": lambda value: base64.b64decode(value, validate=True),
    "integer": _read_integer,
    "number": float,
    "time": _read_time,
}

_WRITERS: Mapping[Kind, Callable[[Any], str]] = {
    "bytes": lambda value: base64.b64encode(value).decode(),
    "time": lambda value: value.isoformat(),
}


def largest_ids(connection: Connection, schema: Mapping[str, Columns]) -> dict[str, int]:
    """Return the largest id that a row ever had, for each table with ids."""
    ids = {}
    floors = _floors(connection, schema)
    for name, columns in schema.items():
        if columns.key != ("id",) or columns.kinds["id"] != "integer":
            continue
        largest = connection.scalar(sa.select(sa.func.max(columns.clause().c.id))) or 0
        ids[name] = max(largest, floors.get(name, 0))
    return ids


def _floors(connection: Connection, schema: Mapping[str, Columns]) -> dict[str, int]:
    if connection.dialect.name == "sqlite":
        query = sa.text("SELECT name, value FROM id_floors")
        return {row.name: row.value for row in connection.execute(query)} if "id_floors" in schema else {}
    floors = {}
    for name, columns in schema.items():
        if columns.key == ("id",):
            query = sa.text("SELECT pg_sequence_last_value(pg_get_serial_sequence(:name, 'id')::regclass)")
            floors[name] = connection.scalar(query, {"name": name}) or 0
    return floors


def begin_ids_after(connection: Connection, schema: Mapping[str, Columns], ids: Mapping[str, int]) -> None:
    """Make new rows get ids above those of existing rows and above `ids`, the result of `largest_ids`.

    Raises:
        ValueError: an id is greater than LARGEST_ID.
    """
    present = largest_ids(connection, schema)
    for name, largest in present.items():
        wanted = max(largest, ids.get(name, 0))
        if wanted > LARGEST_ID:
            raise ValueError(f"table {name} has an id beyond {LARGEST_ID}")
        if connection.dialect.name == "sqlite":
            if wanted > largest and "id_floors" in schema:
                connection.execute(sa.text("DELETE FROM id_floors WHERE name = :name"), {"name": name})
                insert = sa.text("INSERT INTO id_floors (name, value) VALUES (:name, :value)")
                connection.execute(insert, {"name": name, "value": wanted})
        else:
            setval = sa.text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :value, :used)")
            connection.execute(setval, {"name": name, "value": max(wanted, 1), "used": wanted > 0})
