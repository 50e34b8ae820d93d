"""The newest and the best value of every series of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Subquery, and_, func, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.documents.history import BestPoint, Point, Summary, SummarySeries
from evalsvc.store.history.axis import WHOLE
from evalsvc.store.history.gaps import read_gaps
from evalsvc.store.history.reading import number_or_word, read_imports
from evalsvc.store.history.series import choose_series
from evalsvc.store.tables import FINITE, MetricValue
from evalsvc.store.views import document_of

DIRECTIONS = ("lower", "higher")
"""Directions that have a best value."""


def read_summary(session: Session, run: str, names: Sequence[str] = (), variant: str | None = None) -> Summary:
    """Return the number of values, the newest value and the best value of each series.

    The best value is the lowest or the highest finite value, by the metric's direction, and the first of equal values.
    A metric without a direction or without finite values has no best value. Names may be patterns; empty `names` stand
    for all metrics.

    Raises:
        UnknownName: there is no such run, metric or variant; near names are listed.
    """
    chosen = choose_series(session, run, names, variant)
    query = select(MetricValue.series_id, func.count().label("size")).where(MetricValue.series_id.in_(chosen.ids))
    counts = {row.series_id: row.size for row in session.execute(query.group_by(MetricValue.series_id))}
    rows = _rows(session, _latest(chosen.ids))
    latest = {row.MetricValue.series_id: _point(row.MetricValue) for row in rows}
    best = best_points(session, {identity: head.direction for identity, head in chosen.heads.items()})
    series = [
        SummarySeries(**vars(head), count=counts.get(key, 0), latest=latest.get(key), best=best.get(key))
        for key, head in chosen.heads.items()
    ]
    gaps = read_gaps(session, chosen, WHOLE)
    return Summary(run=run, series=series, imports=read_imports(session, chosen.run), **vars(gaps))


def best_points(session: Session, directions: Mapping[int, Direction], last: int | None = None) -> dict[int, BestPoint]:
    """Return the best value of each series, up to the step `last`, by the ids of the series with their directions.

    Series without a direction or a finite value are left out.
    """
    best: dict[int, BestPoint] = {}
    for direction in DIRECTIONS:
        ids = [identity for identity, own in directions.items() if own == direction]
        for row in _rows(session, _best(ids, direction, last)) if ids else ():
            best[row.MetricValue.series_id] = BestPoint(**vars(_point(row.MetricValue)), of=row.of)
    return best


def points_at(session: Session, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Point]:
    """Return values by their places: the id of the series, and the step. Places without a value are left out."""
    query = select(MetricValue).where(tuple_(MetricValue.series_id, MetricValue.step).in_(places))
    return {(row.series_id, row.step): _point(row) for row in session.scalars(query)}


def _latest(ids: Sequence[int]) -> Subquery:
    """Return the query of the last step of each series."""
    query = select(MetricValue.series_id, func.max(MetricValue.step).label("step"))
    return query.where(MetricValue.series_id.in_(ids)).group_by(MetricValue.series_id).subquery()


def _best(ids: Sequence[int], direction: str, last: int | None) -> Subquery:
    """Return the query of the first step, up to `last`, at which each series has its best value, and of how many."""
    up_to = [] if last is None else [MetricValue.step <= last]
    finite = (MetricValue.series_id.in_(ids), MetricValue.kind == FINITE, *up_to)
    extreme = func.min(MetricValue.value) if direction == "lower" else func.max(MetricValue.value)
    columns = MetricValue.series_id, extreme.label("value"), func.count().label("of")
    extremes = select(*columns).where(*finite).group_by(MetricValue.series_id).subquery()
    is_best = and_(extremes.c.series_id == MetricValue.series_id, extremes.c.value == MetricValue.value)
    first, of = func.min(MetricValue.step).label("step"), func.min(extremes.c.of).label("of")
    query = select(MetricValue.series_id, first, of).join(extremes, is_best)
    return query.where(*finite).group_by(MetricValue.series_id).subquery()


def _rows(session: Session, places: Subquery) -> Sequence[Row[Any]]:
    """Return the value of each series at its step in `places`, with the columns of `places`."""
    is_there = and_(places.c.series_id == MetricValue.series_id, places.c.step == MetricValue.step)
    return session.execute(select(MetricValue, places).join(places, is_there)).all()


def _point(row: MetricValue) -> Point:
    return document_of(Point, row, value=number_or_word(row.value, row.kind), import_=row.import_id)
