"""The newest and the best value of every series of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Subquery, and_, func, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.documents.history import Point, Summary, SummarySeries
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
    latest = _values(session, _latest(chosen.ids))
    best = best_points(session, {identity: head.direction for identity, head in chosen.heads.items()})
    series = []
    for key, head in chosen.heads.items():
        own, of = best.get(key, (None, 0))
        count = counts.get(key, 0)
        series.append(SummarySeries(**vars(head), count=count, latest=latest.get(key), best=own, best_of=of))
    gaps = read_gaps(session, chosen, WHOLE)
    return Summary(run=run, series=series, imports=read_imports(session, chosen.run), **vars(gaps))


def best_points(
    session: Session, directions: Mapping[int, Direction], last: int | None = None
) -> dict[int, tuple[Point, int]]:
    """Return the best value of each series up to the step `last`, and the number of values that it was chosen from.

    `directions` are those of the series, by id. Series without a direction or a finite value are left out.
    """
    best: dict[int, tuple[Point, int]] = {}
    for direction in DIRECTIONS:
        if ids := [identity for identity, own in directions.items() if own == direction]:
            places = _best(ids, direction, last)
            rows = session.execute(select(MetricValue, places.c.of).join(places, _is_at(places)))
            best |= {value.series_id: (_point(value), of) for value, of in rows}
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
    """Return the query of the first step, up to `last`, at which each series has its best value."""
    up_to = [] if last is None else [MetricValue.step <= last]
    finite = (MetricValue.series_id.in_(ids), MetricValue.kind == FINITE, *up_to)
    extreme = func.min(MetricValue.value) if direction == "lower" else func.max(MetricValue.value)
    extremes = (
        select(MetricValue.series_id, extreme.label("value"), func.count().label("of"))
        .where(*finite)
        .group_by(MetricValue.series_id)
        .subquery()
    )
    is_best = and_(extremes.c.series_id == MetricValue.series_id, extremes.c.value == MetricValue.value)
    first, of = func.min(MetricValue.step).label("step"), func.min(extremes.c.of).label("of")
    query = select(MetricValue.series_id, first, of).join(extremes, is_best)
    return query.where(*finite).group_by(MetricValue.series_id).subquery()


def _values(session: Session, places: Subquery) -> dict[int, Point]:
    """Return the value of each series at its step in `places`, by series."""
    rows = session.scalars(select(MetricValue).join(places, _is_at(places)))
    return {row.series_id: _point(row) for row in rows}


def _is_at(places: Subquery) -> ColumnElement[bool]:
    return and_(places.c.series_id == MetricValue.series_id, places.c.step == MetricValue.step)


def _point(row: MetricValue) -> Point:
    return document_of(Point, row, value=number_or_word(row.value, row.kind), import_=row.import_id)
