"""Pages of a list: the rows behind a place in the list's order, and the cursor that names the place.

A page begins behind the key of the last row of the page before (keyset pagination). Rows that are inserted or deleted
between two requests move no other row to another page, and the database skips the earlier rows by an index.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from evalsvc.errors import InvalidRequest
from evalsvc.spec.protocol import digest
from evalsvc.spec.visible_text import CONTROL

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
"""Rows of a page: without a limit in the request, and at most."""

MAX_CURSOR = 512
"""Characters of a cursor. The longest key is the name of a file, 255 bytes."""

INT64 = 2**63
"""Every id, step and number of tokens is less than this number."""

AnySelect = Select[*tuple[Any, ...]]

Key = int | str
"""A value of a column by which a list is ordered: a number from 0 on, or a name without control characters."""


@dataclass(frozen=True)
class PageRequest:
    """Which page of a list is read."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    """The cursor of the page; None for the first page."""


@dataclass(frozen=True)
class Order:
    """The order of a list: columns whose values together are unique."""

    columns: Sequence[InstrumentedAttribute[Any]]
    descending: bool = False


def read_page(
    session: Session, query: AnySelect, order: Order, question: object, page: PageRequest
) -> tuple[Sequence[Row[*tuple[Any, ...]]], str | None]:
    """Return the rows of a page of `query`, and the cursor of the next page or None.

    `question` is JSON that names the list and its filters. Each row ends with the values of the order's columns.

    Raises:
        InvalidRequest: the cursor is from another list or from other filters, or was changed.
    """
    columns = order.columns
    query = query.add_columns(*columns)
    if page.cursor is not None:
        place = tuple_(*columns)
        end = tuple_(*read_cursor(page.cursor, question, [column.expression.type.python_type for column in columns]))
        query = query.where(place < end if order.descending else place > end)
    query = query.order_by(*(column.desc() if order.descending else column for column in columns))
    rows = session.execute(query.limit(page.limit + 1)).all()
    if len(rows) <= page.limit:
        return rows, None
    rows = rows[: page.limit]
    return rows, write_cursor(question, rows[-1][-len(columns) :])


def page_of_names(names: Iterable[str], question: object, page: PageRequest) -> tuple[list[str], str | None]:
    """Return a page of names that are not in one table, in their order, and the cursor of the next page or None.

    Raises:
        InvalidRequest: the cursor is from another list, or was changed.
    """
    after = "" if page.cursor is None else read_cursor(page.cursor, question, [str])[0]
    rest = sorted(name for name in names if name > str(after))
    listed = rest[: page.limit]
    return listed, write_cursor(question, listed[-1:]) if len(rest) > page.limit else None


def write_cursor(question: object, key: Sequence[Key]) -> str:
    """Return the cursor of the rows behind `key` in the list that `question` names."""
    text = json.dumps([_checksum(question, key), *key], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, question: object, kinds: Sequence[type]) -> list[Key]:
    """Return the key in a cursor: a value of each of `kinds`, `int` or `str`.

    A client that knows the format can make a cursor, so every value is checked before the database gets the value.

    Raises:
        InvalidRequest: the cursor is none that `write_cursor` gave for this question.
    """
    checksum, *key = _content(cursor) or [None]
    is_key = len(key) == len(kinds) and all(map(_is_value, key, kinds))
    if is_key and checksum == _checksum(question, key):
        return key
    raise InvalidRequest(
        f"the cursor {cursor[:80]!r} does not belong to this list with these filters; start again without cursor, and "
        "give `next_cursor` of each answer as `cursor` of the next request, with the same filters"
    )


def _content(cursor: str) -> list[Any] | None:
    if len(cursor) > MAX_CURSOR:
        return None
    try:
        content = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return content if isinstance(content, list) else None


def _is_value(value: object, kind: type) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < INT64
    return isinstance(value, str) and CONTROL.search(value) is None


def _checksum(question: object, key: Sequence[Key]) -> str:
    return digest([question, list(key)])[:12]
