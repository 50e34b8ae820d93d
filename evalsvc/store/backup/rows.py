"""Rows of tables as lines of JSON, the same for every database: what SQLite wrote, PostgreSQL takes, and vice versa.

The columns are those that the database has, which may be of an older schema, and not those of `store.tables`.
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
"""Bytes from which rows begin another member of the archive."""

MAX_CHUNK = 64 << 20
"""Most bytes of a member with rows: a row is never cut, and may be large."""

AT_ONCE = 500
"""Rows that are read or inserted together."""

STREAMED = {"yield_per": AT_ONCE}
"""Execution options of queries with many rows, which are not to be in memory together."""

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
"""Kinds by the types that the database reports, the special before the general."""

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
    """A table as the database has it."""

    table: str
    kinds: Mapping[str, Kind]
    """By the name of the column, in the database's order."""
    key: tuple[str, ...]
    """Columns of the primary key."""

    def clause(self) -> sa.TableClause:
        """Return the table for statements."""
        return sa.table(self.table, *(sa.column(name, _TYPES[kind]) for name, kind in self.kinds.items()))


def read_schema(connection: Connection) -> dict[str, Columns]:
    """Return evalsvc's tables that the database has, each after those that it refers to."""
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


def _kind_of(found: object) -> Kind:
    return next(kind for type_, kind in _KINDS if isinstance(found, type_))


def dump_rows(connection: Connection, columns: Columns) -> Iterator[bytes]:
    """Yield the rows of a table as lines, in the order of the primary key."""
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
    """Join lines to chunks of at least CHUNK bytes, but for the last one. Yields each with its number of lines."""
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
    """Read lines of `dump_rows` as values to insert.

    Raises:
        ValueError: a line has other columns, or values of other types, than the table.
    """
    return [_load_row(columns, number, line) for number, line in enumerate(content.splitlines(), 1)]


def _load_row(columns: Columns, number: int, line: bytes) -> dict[str, object]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"line {number} is not JSON") from None
    if not isinstance(values, list) or len(values) != len(columns.kinds):
        raise ValueError(f"line {number} has not the {len(columns.kinds)} columns of table {columns.table}")
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
"""Types of the values of a kind in JSON; those of the kind `json` have any."""


def _read_value(kind: Kind, value: object) -> object:
    """Raise ValueError, TypeError or OverflowError for a value of another kind."""
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
    """Return the largest id that was ever given to a row of each table with ids."""
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
    """Have new rows get ids beyond `ids`, the largest ones that `largest_ids` found, and beyond those of all rows."""
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
