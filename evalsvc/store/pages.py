"""Pages of lists, and filters of lists of checkpoints and evaluations.

Pagination is by keyset: a page begins after the key of the last row of the page before, which is in the cursor. Rows
that are inserted or deleted between two requests move no other row, and the database skips earlier rows by an index.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents.fields import State
from evalsvc.spec.protocol import digest
from evalsvc.spec.visible_text import CONTROL
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Checkpoint, Evaluation

DEFAULT_LIMIT, MAX_LIMIT, MAX_VALUES = 100, 1000, 200_000
"""Rows on a page: the default, and the maximum; and the most values of a history, whose columns are in memory."""

MAX_CURSOR = 512
"""The most characters of a cursor. The longest key is the name of a file, with 255 bytes."""

INT64 = 2**63
"""The exclusive upper bound of ids, steps and numbers of tokens."""

Key = int | str
"""A value in the key of a row: a number from 0 on, or a name without control characters."""


@dataclass(frozen=True)
class PageRequest:
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    """The cursor of the page; None for the first page."""


@dataclass(frozen=True)
class Order:
    """The order of a list: columns that together form a unique key."""

    columns: Sequence[InstrumentedAttribute[Any]]
    descending: bool = False


def read_page(
    session: Session, query: Select[*tuple[Any, ...]], order: Order, question: object, page: PageRequest
) -> tuple[Sequence[Row[*tuple[Any, ...]]], str | None]:
    """Return the rows of a page of `query`, and the cursor of the next page; None for the last page. A cursor is only
    valid for the same `question`: JSON that names the list and its filters."""
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
    """Return a page of sorted names from several sources, and the cursor of the next page; see `read_page`."""
    after = "" if page.cursor is None else read_cursor(page.cursor, question, [str])[0]
    rest = sorted(name for name in names if name > str(after))
    listed = rest[: page.limit]
    return listed, write_cursor(question, listed[-1:]) if len(rest) > page.limit else None


def write_cursor(question: object, key: Sequence[Key]) -> str:
    """Return the cursor of the rows after `key` in the list that `question` names."""
    text = json.dumps([_checksum(question, key), *key], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, question: object, kinds: Sequence[type]) -> list[Key]:
    """Return the key in a cursor, with values of the types `kinds`, each `int` or `str`. A client that knows the format
    can forge a cursor. Every value is therefore checked before a query contains it."""
    content: Any = None
    with suppress(ValueError, RecursionError):  # ValueError: no base64, no UTF-8 or no JSON
        if len(cursor) <= MAX_CURSOR:
            content = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    values: list[Any] = content if isinstance(content, list) and content else [None]
    checksum, *key = values
    is_key = len(key) == len(kinds) and all(
        type(value) is int and 0 <= value < INT64
        if kind is int
        else isinstance(value, str) and CONTROL.search(value) is None
        for value, kind in zip(key, kinds, strict=True)
    )
    if is_key and checksum == _checksum(question, key):
        return key
    raise InvalidRequest(
        f"the cursor {cursor[:80]!r} does not belong to this list with these filters; start again without `cursor`, "
        "and send `next_cursor` of each answer as `cursor` of the next request, with the same filters"
    )


def _checksum(question: object, key: Sequence[Key]) -> str:
    return digest([question, list(key)])[:12]


@dataclass(frozen=True)
class Filters:
    """Conditions on the checkpoints, or on the evaluations, in a list. A field that is None is no condition."""

    run: str | None = None
    variant: str | None = None
    suite: str | None = None
    """For lists of evaluations only."""
    state: State | None = None
    """The state of the evaluations; for a list of checkpoints, the state of at least one evaluation of each."""
    first: int | None = None
    last: int | None = None
    """The lowest and the highest step."""

    def __post_init__(self) -> None:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise InvalidRequest(f"from={self.first} is greater than to={self.last}; swap the two")

    def of_checkpoints(self, session: Session) -> Iterator[ColumnElement[bool]]:
        """Yield the conditions on a checkpoint's run, variant and step."""
        if self.run is not None:
            yield Checkpoint.run_id == find_run(session, self.run).id
        if self.variant is not None:
            posted = select(Checkpoint.variant)
            if self.run is not None:
                posted = posted.where(Checkpoint.run_id == find_run(session, self.run).id)
            if session.scalar(posted.where(Checkpoint.variant == self.variant).limit(1)) is None:
                kind = "variant" if self.run is None else f"variant of run {self.run!r}"
                raise UnknownName.among(kind, self.variant, session.scalars(posted.distinct()))
            yield Checkpoint.variant == self.variant
        if self.first is not None:
            yield Checkpoint.step >= self.first
        if self.last is not None:
            yield Checkpoint.step <= self.last


def require_suite(session: Session, suite: str, named: Iterable[str]) -> None:
    """Raise UnknownName unless the suite is in `named`, or has evaluated a checkpoint and was deleted since."""
    known = set(named)
    evaluated = select(Evaluation.suite).distinct()
    if suite not in known and session.scalar(evaluated.where(Evaluation.suite == suite).limit(1)) is None:
        raise UnknownName.among("suite", suite, known.union(session.scalars(evaluated)))
