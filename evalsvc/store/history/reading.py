"""The history: values of series along training steps, read in columns, whole or page by page."""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, Select, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.store.history.axis import WHOLE, Axis, Window
from evalsvc.store.history.series import choose_series, metric_names, run_series, series_heads
from evalsvc.store.history.values import NOT_FINITE
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Import, MetricValue, Protocol, Run

PIECE = 500
"""Rows that are turned into columns at once. Of many that are alive together the garbage collector walks all again and
again: 100,000 take 145 ms by 2,000 and 66 ms by 500."""

INT64 = 2**63
"""What every id, step and number of tokens is below."""

_WORDS = {kind: word for word, kind in NOT_FINITE.items()}


def read_history(
    session: Session,
    run: str,
    names: Sequence[str] = (),
    variant: str | None = None,
    window: Window = WHOLE,
    limit: int | None = None,
    cursor: str | None = None,
) -> dict[str, Any]:
    """A run's series as columns, ordered by x; all of its metrics where `names` (which may be patterns) is empty.

    Where a metric was measured by several protocols, `differs` of each series has the fields that tell them apart.
    Along tokens, checkpoints posted without `tokens_seen` have no place on the axis; `omitted` counts them. `import` of
    a series is None where all its values were measured, else a column of ids, which `imports` explains. `groups` has
    the number of independent groups of items behind each value; it is None where no value of the series has groups.

    With `limit`, at most so many values, of which `next` is the cursor of those that follow; a series of which none is
    among them is left out. Pages go by series, the oldest first, and by x: what is written meanwhile moves nothing.

    Raises:
        UnknownName: no such run, metric or variant; near misses are named.
        InvalidRequest: x is tokens and no checkpoint of the run says how many it has seen; the cursor is of another run
            or axis.
    """
    row = find_run(session, run)
    everything = run_series(session, row)
    chosen = choose_series(everything, names, variant)
    if chosen:
        window.require_tokens(session, row)
    after = None if cursor is None else _parse_cursor(cursor, row, window.x)
    imports = read_imports(session, row)
    ids = sorted(item.id for item in chosen)
    values, more = _read_values(session, window, ids, after, limit, bool(imports))
    omitted = window.count_omitted(session, ids)
    columns = [values.of(item.id) for item in chosen]
    return {
        "run": run,
        "x": window.x,
        "series": [
            {**head, **own.to_json(), "omitted": omitted.get(item.id, 0)}
            for item, head, own in zip(chosen, series_heads(session, chosen), columns, strict=True)
            if own.x or limit is None
        ],
        "names": metric_names(everything),
        "imports": imports,
        "next": _cursor(row, window.x, values) if more else None,
    }


def read_protocol(session: Session, protocol_id: str) -> dict[str, Any]:
    """The content of a protocol by its id."""
    row = session.get(Protocol, protocol_id)
    if row is None:
        raise UnknownName.among("protocol", protocol_id, session.scalars(select(Protocol.id)))
    return row.content


def read_imports(session: Session, run: Run) -> dict[str, dict[str, Any]]:
    """By id, as JSON has it: where and when the values that were not measured here came from."""
    rows = session.scalars(select(Import).where(Import.run_id == run.id).order_by(Import.id))
    return {
        str(row.id): {"source": row.source, "created_at": row.created_at.isoformat(timespec="milliseconds")}
        for row in rows
    }


def number_or_word(value: Any, kind: int) -> float | str:
    """What `metric_values` holds, as JSON has it."""
    found: float | str = _WORDS.get(kind, value)
    return found


def append_columns(session: Session, query: Executable, columns: Sequence[list[Any]]) -> None:
    """Add the rows of a query of columns to lists, one a column."""
    # Not by session.execute, which looks at every row for objects that it knows: that takes as long as all the rest.
    found = session.connection().execute(query)
    while rows := found.fetchmany(PIECE):
        for column, piece in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(piece)


@dataclass(frozen=True)
class _Place:
    """Where a value is in the order of pages."""

    series: int
    x: int
    step: int
    """Two checkpoints may have seen equally many tokens."""


@dataclass(frozen=True)
class _Values:
    """Values of several series in one column each, by series, x and step."""

    series: Sequence[int]
    x: Sequence[int]
    value: Sequence[float | str | None]
    stderr: Sequence[float | None]
    n: Sequence[int | None]
    groups: Sequence[int | None]
    step: Sequence[int]
    imports: Sequence[int | None] | None
    """None: nothing was imported."""

    def of(self, series: int) -> _Values:
        part = slice(bisect_left(self.series, series), bisect_right(self.series, series))
        cut: dict[str, Any] = {name: None if column is None else column[part] for name, column in vars(self).items()}
        return _Values(**cut)

    def to_json(self) -> dict[str, Any]:
        imports = None if self.imports is None or not any(self.imports) else self.imports
        groups = self.groups if any(self.groups) else None
        counts = {"n": self.n, "groups": groups}
        return {"x": self.x, "value": self.value, "stderr": self.stderr, **counts, "import": imports}


def _read_values(
    session: Session, window: Window, ids: Sequence[int], after: _Place | None, limit: int | None, with_imports: bool
) -> tuple[_Values, bool]:
    """The values of the series behind a place, and whether there are more of them than `limit`."""
    names = [MetricValue.series_id, window.column, MetricValue.value, MetricValue.kind, MetricValue.stderr]
    names += [MetricValue.n, MetricValue.groups, *([MetricValue.import_id] if with_imports else [])]
    names += [MetricValue.step] if window.x == "tokens" else []
    columns: list[list[Any]] = [[] for _ in names]
    for query in _queries(window, ids, after, names):
        query = query.order_by(MetricValue.series_id, window.column, MetricValue.step)
        append_columns(session, query.limit(None if limit is None else limit + 1 - len(columns[0])), columns)
    more = limit is not None and len(columns[0]) > limit
    series, x, value, kind, stderr, n, groups, *rest = (column[:limit] for column in columns)
    if any(kind):
        value = [_WORDS[what] if what else number for number, what in zip(value, kind, strict=True)]
    step = rest.pop() if window.x == "tokens" else x
    return _Values(series, x, value, stderr, n, groups, step, rest[0] if with_imports else None), more


def _queries(window: Window, ids: Sequence[int], after: _Place | None, names: Sequence[Any]) -> list[Select[Any]]:
    if after is None:
        return [window.values(ids, *names)]
    # The rest of the series in which the last page ended comes apart: in one query with the others, the database
    # would walk it from its beginning for every page.
    behind = tuple_(window.column, MetricValue.step) > tuple_(after.x, after.step)
    later = [identity for identity in ids if identity > after.series]
    rest = [after.series] if after.series in ids else []
    return [window.values(rest, *names).where(behind), window.values(later, *names)]


def _cursor(run: Run, x: Axis, values: _Values) -> str:
    place = [run.id, x, values.series[-1], values.x[-1], values.step[-1]]
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def _parse_cursor(cursor: str, run: Run, x: Axis) -> _Place:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        of_run, of_x, *place = json.loads(text)
        is_number = [type(part) is int and 0 <= part < INT64 for part in place]
        if (of_run, of_x) == (run.id, x) and is_number == [True] * 3:
            return _Place(*place)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        pass
    raise InvalidRequest(
        f"the cursor {cursor[:80]!r} is none that run {run.name!r} gave for x={x}; take `next` of the page before, or "
        "begin without one"
    )
