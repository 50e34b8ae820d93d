"""Read the history of a run: values in columns, as a whole or page by page, and the newest and best values."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from sqlalchemy import Executable, and_, func, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.fields import Direction, Word
from evalsvc.spec.documents.history import (
    BestPoint,
    History,
    ImportSource,
    Point,
    SeriesHead,
    Summary,
    SummarySeries,
    ValueSeries,
)
from evalsvc.store.history.gaps import Gaps, read_gaps
from evalsvc.store.history.series import WHOLE, Window, choose_series
from evalsvc.store.pages import MAX_VALUES, read_cursor, write_cursor
from evalsvc.store.tables import FINITE, WORDS, Import, MetricValue, Run, Series
from evalsvc.store.views import document_of

VALUES = tuple(getattr(MetricValue, name) for name in ("value", "kind", "stderr", "low", "high", "n", "groups"))
"""The columns of a value in an answer."""

Table = dict[str, list[Any]]
"""Columns of equal length, by name."""

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
    """Read a run's series in columns ordered by x; `names` may be patterns, and by default all are read.

    Along tokens, `omitted` counts values of checkpoints without `tokens_seen`. `limit` is the most values on a page,
    over all series; pages are ordered by series, the oldest first, and by x, so that new values move no value to
    another page. A series without values in the window is on the page where its values would be. `cursor` is
    `next_cursor` of the page before. Without `limit`, more than MAX_VALUES are refused.
    """
    chosen = choose_series(session, run, names, variant)
    window.require_tokens(session, chosen)
    question = ["metrics", chosen.run.id, *vars(window).values(), list(names), variant]
    after = () if cursor is None else tuple(map(int, read_cursor(cursor, question, [int] * 3)))
    imports = read_imports(session, chosen.run)
    table, more = _read_values(session, window, chosen.ids, after, limit or MAX_VALUES, bool(imports))
    if more and limit is None:
        raise InvalidRequest(
            f"run {run!r} has more than {MAX_VALUES:,} such values, the most of an answer; ask for fewer metrics or "
            "steps, or for points; pages, by limit, and the table as CSV have all of the values"
        )
    omitted = window.count_omitted(session, chosen.ids)
    # The step too, since two checkpoints may have seen equally many tokens.
    next_cursor = write_cursor(question, [table[name][-1] for name in ("series_id", "x", "step")]) if more else None
    begun, end = after[0] if after else -1, table["series_id"][-1] if more else inf
    series = []
    for identity, head in chosen.heads.items():
        part = part_of(table, identity)
        if not (part["x"] or begun < identity < end):
            continue
        imported = part.get("import_id", [])
        fields: dict[str, Any] = {name: part[name] for name in ("x", "value", "stderr", "low", "high", "n")}
        series.append(
            ValueSeries(
                **vars(head),
                **fields,
                groups=part["groups"] if any(part["groups"]) else None,
                import_=imported if any(imported) else None,
                omitted=omitted.get(identity, 0),
            )
        )
    gaps = Gaps([], False) if after else read_gaps(session, chosen, window)
    return History(
        run=run,
        x=window.x,
        series=series,
        names=chosen.names,
        imports=imports,
        next_cursor=next_cursor,
        **vars(gaps),
    )


def read_summary(session: Session, run: str, names: Sequence[str] = (), variant: str | None = None) -> Summary:
    """Return the number of values, the newest and the best value of each series; `names` may be patterns. The best
    value is the lowest or the highest finite value, by the metric's direction, and the first of equal values."""
    chosen = choose_series(session, run, names, variant)
    columns = (MetricValue.series_id, func.count().label("size"), func.max(MetricValue.step).label("step"))
    query = select(*columns).where(MetricValue.series_id.in_(chosen.ids)).group_by(MetricValue.series_id)
    sizes = {row.series_id: row for row in session.execute(query)}
    latest = points_at(session, [(key, row.step) for key, row in sizes.items()])
    best = best_points(session, {key: head.direction for key, head in chosen.heads.items()})
    series = [
        SummarySeries(
            **vars(head),
            count=sizes[key].size if key in sizes else 0,
            latest=latest[key, sizes[key].step] if key in sizes else None,
            best=best.get(key),
        )
        for key, head in chosen.heads.items()
    ]
    gaps = read_gaps(session, chosen, WHOLE)
    return Summary(run=run, series=series, imports=read_imports(session, chosen.run), **vars(gaps))


def best_points(session: Session, directions: Mapping[int, Direction], last: int | None = None) -> dict[int, BestPoint]:
    """Return the best finite value of each series that has one, up to the step `last`, by the directions of series."""
    best: dict[int, BestPoint] = {}
    for direction, extreme in (("lower", func.min), ("higher", func.max)):
        ids = [series for series, wanted in directions.items() if wanted == direction]
        finite = [MetricValue.series_id.in_(ids), MetricValue.kind == FINITE]
        finite += [] if last is None else [MetricValue.step <= last]
        columns = MetricValue.series_id, extreme(MetricValue.value).label("value"), func.count().label("of")
        extremes = select(*columns).where(*finite).group_by(MetricValue.series_id).subquery()
        is_best = and_(extremes.c.series_id == MetricValue.series_id, extremes.c.value == MetricValue.value)
        first, of = func.min(MetricValue.step).label("step"), func.min(extremes.c.of).label("of")
        query = select(MetricValue.series_id, first, of).join(extremes, is_best).where(*finite)
        places = query.group_by(MetricValue.series_id).subquery()
        is_there = and_(places.c.series_id == MetricValue.series_id, places.c.step == MetricValue.step)
        for row in session.execute(select(MetricValue, places.c.of).join(places, is_there)) if ids else ():
            best[row.MetricValue.series_id] = BestPoint(**vars(_point(row.MetricValue)), of=row.of)
    return best


def best_values(session: Session, run: Run, series: SeriesHead, most: int, last: int | None = None) -> list[Point]:
    """Return the best finite values of a series of a run, the best first."""
    own = select(Series.id).filter_by(
        run_id=run.id, metric=series.metric, variant=series.variant, protocol_id=series.protocol
    )
    value = MetricValue.value.desc() if series.direction == "higher" else MetricValue.value
    query = select(MetricValue).where(MetricValue.series_id.in_(own), MetricValue.kind == FINITE)
    query = query if last is None else query.where(MetricValue.step <= last)
    return [_point(row) for row in session.scalars(query.order_by(value, MetricValue.step).limit(most))]


def points_at(session: Session, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Point]:
    """Return values by their places: the id of the series, and the step."""
    query = select(MetricValue).where(tuple_(MetricValue.series_id, MetricValue.step).in_(places))
    return {(row.series_id, row.step): _point(row) for row in session.scalars(query)}


def _point(row: MetricValue) -> Point:
    return document_of(Point, row, value=number_or_word(row.value, row.kind), import_=row.import_id)


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


def read_table(session: Session, query: Executable) -> Table:
    """Return the rows of a query as columns by name, with the words of values that are not finite."""
    # session.execute would search every row for mapped objects, which doubles the time.
    result = session.connection().execute(query)
    table: Table = {name: [] for name in result.keys()}  # noqa: SIM118
    while rows := result.fetchmany(PIECE):
        for column, piece in zip(table.values(), zip(*rows, strict=True), strict=True):
            column.extend(piece)
    if any(table.get("kind", ())):
        pairs = zip(table["value"], table["kind"], strict=True)
        table["value"] = [WORDS[kind] if kind else number for number, kind in pairs]
    return table


def part_of(table: Table, series: int) -> Table:
    """Return the rows of a series from a table that is ordered by series."""
    part = slice(bisect_left(table["series_id"], series), bisect_right(table["series_id"], series))
    return {name: column[part] for name, column in table.items()}


def _read_values(
    session: Session, window: Window, ids: Sequence[int], after: Sequence[int], limit: int, with_imports: bool
) -> tuple[Table, bool]:
    query = select(MetricValue.series_id, window.column.label("x"), *VALUES)
    query = query.add_columns(MetricValue.step) if window.x == "tokens" else query
    query = query.add_columns(MetricValue.import_id) if with_imports else query
    query = query.order_by(MetricValue.series_id, window.column, MetricValue.step)
    parts = [window.narrow(query, ids)]
    if after:
        # A query of its own reads the rest of the series in which the last page ended. In a joint query with later
        # series, the database would scan this series from its beginning for every page.
        series, *place = after
        behind = tuple_(window.column, MetricValue.step) > tuple_(*place)
        later = [identity for identity in ids if identity > series]
        parts = [window.narrow(query, [series] if series in ids else []).where(behind), window.narrow(query, later)]
    table: Table = {}
    for part in parts:
        size = len(table["x"]) if table else 0
        rows = read_table(session, part.limit(limit + 1 - size))
        table = {name: table[name] + column for name, column in rows.items()} if table else rows
    more = len(table["x"]) > limit
    table = {name: column[:limit] for name, column in table.items()} if more else table
    return {"step": table["x"]} | table, more
