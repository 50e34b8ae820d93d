"""Read the history of a run: values of series by training step, in columns, as a whole or page by page."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, Select, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import History, ImportSource, SeriesHead, ValueSeries
from evalsvc.store.history.axis import WHOLE, Columns, Window
from evalsvc.store.history.gaps import Gaps, read_gaps
from evalsvc.store.history.series import choose_series
from evalsvc.store.history.values import WORDS
from evalsvc.store.lists.pages import read_cursor, write_cursor
from evalsvc.store.tables import Import, MetricValue, Protocol, Run
from evalsvc.store.views import document_of

PIECE = 500
"""The number of rows that are turned into columns together. With more rows in memory, the garbage collector slows down:
100,000 rows take 145 ms in pieces of 2,000, and 66 ms in pieces of 500."""


def read_history(
    session: Session,
    run: str,
    names: Sequence[str] = (),
    variant: str | None = None,
    window: Window = WHOLE,
    limit: int | None = None,
    cursor: str | None = None,
) -> History:
    """Read a run's series in columns ordered by x.

    Args:
        names: metrics, or patterns of metrics; empty for all metrics.
        window: the axis and its range. Along tokens, values of checkpoints without `tokens_seen` have no x; `omitted`
            of a series counts such values.
        limit: the most values on a page, over all series; series without a value on the page are left out. Pages are
            ordered by series, the oldest first, and by x, so that new values move no value to another page.
        cursor: `next_cursor` of the page before; None for the first page.

    Raises:
        UnknownName: there is no such run, metric or variant; near names are listed.
        InvalidRequest: x is tokens, and no checkpoint of the run was posted with `tokens_seen`; or the cursor is from
            a request with other parameters.
    """
    chosen = choose_series(session, run, names, variant)
    window.require_tokens(session, chosen)
    question = ["metrics", chosen.run.id, *vars(window).values(), list(names), variant]
    after = None if cursor is None else _Place(*map(int, read_cursor(cursor, question, [int] * 3)))
    imports = read_imports(session, chosen.run)
    values, more = _read_values(session, window, chosen.ids, after, limit, bool(imports))
    omitted = window.count_omitted(session, chosen.ids)
    next_cursor = write_cursor(question, [values.series[-1], values.x[-1], values.step[-1]]) if more else None
    series = [values.of(identity, head, omitted.get(identity, 0)) for identity, head in chosen.heads.items()]
    gaps = read_gaps(session, chosen, window) if after is None else Gaps([], False)
    return History(
        run=run,
        x=window.x,
        series=[item for item in series if item.x or limit is None],
        names=chosen.names,
        imports=imports,
        next_cursor=next_cursor,
        **vars(gaps),
    )


def read_protocol(session: Session, protocol_id: str) -> Mapping[str, object]:
    """Return the content of a protocol; raise UnknownName for an unknown id."""
    row = session.get(Protocol, protocol_id)
    if row is None:
        raise UnknownName.among("protocol", protocol_id, session.scalars(select(Protocol.id)))
    return row.content


def read_imports(session: Session, run: Run) -> dict[str, ImportSource]:
    """Return source and time of each import into a run, by the id of the import as a string."""
    rows = session.scalars(select(Import).where(Import.run_id == run.id).order_by(Import.id))
    return {str(row.id): document_of(ImportSource, row) for row in rows}


def number_or_word(value: float | None, kind: int) -> float | Word:
    """Return the value in a row of `metric_values`: a number, or the word of NaN or an infinity."""
    if kind in WORDS:
        return WORDS[kind]
    assert value is not None
    return value


def read_columns(session: Session, query: Executable) -> list[list[Any]]:
    """Return the rows of a query as a list for each column."""
    # session.execute would search every row for mapped objects, which doubles the time.
    result = session.connection().execute(query)
    columns: list[list[Any]] = [[] for _ in result.keys()]  # noqa: SIM118
    while rows := result.fetchmany(PIECE):
        for column, piece in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(piece)
    return columns


@dataclass(frozen=True)
class _Place:
    """The position of a value in the order of pages."""

    series: int
    x: int
    step: int
    """The step of the value, since two checkpoints may have seen equally many tokens."""


@dataclass(frozen=True)
class _Values:
    """Columns of values of several series, ordered by series, x and step."""

    series: list[int]
    x: list[int]
    step: list[int]
    value: list[float | Word]
    stderr: list[float | None]
    low: list[float | None]
    high: list[float | None]
    n: list[int | None]
    groups: list[int | None]
    import_: list[int | None]
    """The import of each value, or None; empty if the run has no imports."""

    def of(self, series: int, head: SeriesHead, omitted: int) -> ValueSeries:
        """Return the values of the series with this id."""
        part = slice(bisect_left(self.series, series), bisect_right(self.series, series))
        groups, imports = self.groups[part], self.import_[part]
        return ValueSeries(
            **vars(head),
            x=self.x[part],
            value=self.value[part],
            stderr=self.stderr[part],
            low=self.low[part],
            high=self.high[part],
            n=self.n[part],
            groups=groups if any(groups) else None,
            import_=imports if any(imports) else None,
            omitted=omitted,
        )


def _read_values(
    session: Session, window: Window, ids: Sequence[int], after: _Place | None, limit: int | None, with_imports: bool
) -> tuple[_Values, bool]:
    """Return at most `limit` values of the series, beginning after `after`, and whether more values follow."""
    names = ("value", "kind", "stderr", "low", "high", "n", "groups")
    query = select(MetricValue.series_id, window.column, *(getattr(MetricValue, name) for name in names))
    query = query.add_columns(MetricValue.step) if window.x == "tokens" else query
    query = query.add_columns(MetricValue.import_id) if with_imports else query
    query = query.order_by(MetricValue.series_id, window.column, MetricValue.step)
    first, *others = _parts(window, query, ids, after)
    columns = read_columns(session, first.limit(None if limit is None else limit + 1))
    for part in others:
        rest = read_columns(session, part.limit(None if limit is None else limit + 1 - len(columns[0])))
        columns = [[*column, *more] for column, more in zip(columns, rest, strict=True)]
    more = limit is not None and len(columns[0]) > limit
    series, x, value, kind, *rest_of_value = (column[:limit] for column in columns)
    errors, optional = rest_of_value[:5], rest_of_value[5:]
    if any(kind):
        value = [WORDS[code] if code else number for number, code in zip(value, kind, strict=True)]
    step = optional.pop(0) if window.x == "tokens" else x
    return _Values(series, x, step, value, *errors, *(optional or [[]])), more


def _parts(window: Window, query: Select[*Columns], ids: Sequence[int], after: _Place | None) -> list[Select[*Columns]]:
    if after is None:
        return [window.narrow(query, ids)]
    # A query of its own reads the rest of the series in which the last page ended. In a joint query with later series,
    # the database would scan this series from its beginning for every page.
    behind = tuple_(window.column, MetricValue.step) > tuple_(after.x, after.step)
    later = [identity for identity in ids if identity > after.series]
    rest = [after.series] if after.series in ids else []
    return [window.narrow(query, rest).where(behind), window.narrow(query, later)]
