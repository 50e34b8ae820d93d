"""A history in buckets, computed by the database, for drawing curves of many values.

The window is cut into at most `points` ranges of equal integer width w = ⌈range / points⌉: bucket i has the values with
first + i·w ≤ x < first + (i + 1)·w. Without a window, the range extends from the first to the last x of all requested
series. All series of an answer have the same ranges. A range without values has no bucket.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, SQLColumnExpression, and_, case, func, literal, select
from sqlalchemy.orm import Session

from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import Buckets, BucketSeries, SeriesHead
from evalsvc.store.history.axis import WHOLE, Window
from evalsvc.store.history.gaps import read_gaps
from evalsvc.store.history.reading import number_or_word, read_columns
from evalsvc.store.history.series import choose_series
from evalsvc.store.lists.pages import INT64
from evalsvc.store.tables import (
    FINITE,
    NAN,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    Checkpoint,
    MetricValue,
    Run,
    checkpoint_parents,
)

LARGE = 1e290
"""A bucket with a finite value of at least this magnitude has no mean. The sum of such values may overflow: PostgreSQL
raises an error, and SQLite returns infinity."""


def read_buckets(
    session: Session,
    run: str,
    names: Sequence[str] = (),
    variant: str | None = None,
    window: Window = WHOLE,
    points: int = 500,
) -> Buckets:
    """Read a run's series in at most `points` buckets each; `names` may be patterns, and by default all are read.

    Raises:
        UnknownName: there is no such run, metric or variant; near names are listed.
        InvalidRequest: x is tokens, and no checkpoint of the run was posted with `tokens_seen`.
    """
    chosen = choose_series(session, run, names, variant)
    window.require_tokens(session, chosen)
    start, width = _ranges(session, window, chosen.ids, points)
    buckets = _Query(session, window, chosen.ids, start, width).read()
    virtual = _virtual_steps(session, chosen.run)
    omitted = window.count_omitted(session, chosen.ids)
    return Buckets(
        run=run,
        x=window.x,
        sampled=True,
        start=start,
        width=width,
        series=[
            buckets.of(identity, head, omitted.get(identity, 0), virtual.get(head.variant, frozenset()))
            for identity, head in chosen.heads.items()
        ],
        names=chosen.names,
        **vars(read_gaps(session, chosen, window)),
    )


def _ranges(session: Session, window: Window, ids: Sequence[int], points: int) -> tuple[int, int]:
    """Return the lower end of the first bucket and the width of all buckets."""
    start, end = window.first, window.last
    if start is None or end is None:
        # One query for each end of each series: the database reads the end from the key. A query for both ends or for
        # several series would scan all values.
        column = window.column
        firsts, lasts = (
            [
                x
                for identity in ids
                if (x := session.scalar(window.narrow(select(extreme(column)), [identity]))) is not None
            ]
            for extreme in (func.min, func.max)
        )
        start = min(firsts, default=0) if start is None else start
        end = max(lasts, default=start) if end is None else end
    return start, max(1, -(-(end - start + 1) // points))


def _virtual_steps(session: Session, run: Run) -> dict[str, set[int]]:
    """Return the steps of a run's current checkpoints that are computed from others, by variant."""
    query = select(Checkpoint.variant, Checkpoint.step).where(
        Checkpoint.run_id == run.id,
        Checkpoint.replaced_at.is_(None),
        Checkpoint.id.in_(select(checkpoint_parents.c.checkpoint_id)),
    )
    steps: dict[str, set[int]] = {}
    for variant, step in session.execute(query):
        steps.setdefault(variant, set()).add(step)
    return steps


@dataclass(frozen=True)
class _Columns:
    """Columns of buckets with their sums, ordered by series and number of the bucket."""

    series: list[int]
    number: list[int]
    x: list[int]
    count: list[int]
    finite: list[int]
    min: list[float | None]
    max: list[float | None]
    total: list[float | None]
    imported: list[int]


@dataclass(frozen=True)
class _Last:
    """The last value of each bucket, by series and place."""

    step: list[int]
    value: list[float | Word]
    stderr: list[float | None]
    low: list[float | None]
    high: list[float | None]
    n: list[int | None]
    groups: list[int | None]


_LAST = (
    MetricValue.step,
    MetricValue.value,
    MetricValue.kind,
    MetricValue.stderr,
    MetricValue.low,
    MetricValue.high,
    MetricValue.n,
    MetricValue.groups,
)


def _last_of(columns: Sequence[list[Any]]) -> _Last:
    """Return last values from the columns `_LAST`."""
    steps, values, kinds, *errors = columns
    if any(kinds):
        values = [number_or_word(value, kind) for value, kind in zip(values, kinds, strict=True)]
    return _Last(steps, values, *errors)


@dataclass(frozen=True)
class _Buckets:
    """Complete buckets of several series."""

    sums: _Columns
    last: _Last
    special: list[_Special]

    def of(self, series: int, head: SeriesHead, omitted: int, virtual: Set[int]) -> BucketSeries:
        """Return the buckets of the series with this id; `virtual` has the steps of virtual checkpoints."""
        sums = self.sums
        part = slice(bisect_left(sums.series, series), bisect_right(sums.series, series))
        special = self.special[part]
        means = zip(sums.total[part], sums.finite[part], sums.min[part], sums.max[part], strict=True)
        groups = self.last.groups[part]
        return BucketSeries(
            **vars(head),
            x=sums.x[part],
            last=self.last.value[part],
            stderr=self.last.stderr[part],
            low=self.last.low[part],
            high=self.last.high[part],
            n=self.last.n[part],
            groups=groups if any(groups) else None,
            min=sums.min[part],
            max=sums.max[part],
            mean=[_mean(*sums_of_bucket) for sums_of_bucket in means],
            count=sums.count[part],
            nan=[rest.nan for rest in special],
            positive_infinity=[rest.positive_infinity for rest in special],
            negative_infinity=[rest.negative_infinity for rest in special],
            imported=sums.imported[part],
            virtual=[step in virtual for step in self.last.step[part]],
            omitted=omitted,
        )


class _Query:
    """The queries for the buckets of the series with these ids."""

    def __init__(self, session: Session, window: Window, ids: Sequence[int], start: int, width: int) -> None:
        self.session, self.window, self.ids = session, window, ids
        # The width of a single bucket for all possible steps exceeds the largest integer of a database.
        self.number = (window.column - start) // width if width < INT64 else window.column - window.column

    def read(self) -> _Buckets:
        """Read the buckets, ordered by series and number of the bucket."""
        sums = self._sums()
        if self.window.x == "tokens":
            buckets = _Columns(*read_columns(self.session, sums.order_by("series", "number")))
            last = self._last_along_tokens(buckets)
        else:
            # The window's conditions are left out because they hold here. With them, SQLite would scan all values for
            # each bucket.
            ends = sums.subquery()
            value_of = and_(MetricValue.series_id == ends.c.series, MetricValue.step == ends.c.x)
            query = select(*ends.c, *_LAST).join(MetricValue, value_of)
            columns = read_columns(self.session, query.order_by(ends.c.series, ends.c.number))
            buckets = _Columns(*columns[: -len(_LAST)])
            last = _last_of(columns[-len(_LAST) :])
        special = self._special() if buckets.count != buckets.finite else {}
        keys = zip(buckets.series, buckets.number, strict=True)
        return _Buckets(buckets, last, [special.get(key, _NOTHING) for key in keys])

    def _sums(self) -> Select[*tuple[object, ...]]:
        """Return the query of the fields of `_Columns`."""
        value = MetricValue.value
        # Without grouping by the only series, the database need not sort by series, which takes a fifth of the time.
        alone = len(self.ids) == 1
        series = literal(self.ids[0]) if alone else MetricValue.series_id
        columns: list[SQLColumnExpression[object]] = [
            series.label("series"),
            self.number.label("number"),
            func.max(self.window.column).label("x"),
            func.count().label("size"),
            func.count(value).label("finite"),
            func.min(value).label("min"),
            func.max(value).label("max"),
            func.sum(case((and_(value > -LARGE, value < LARGE), value))).label("total"),
            func.count(MetricValue.import_id).label("imported"),
        ]
        return self.window.narrow(select(*columns), self.ids).group_by(self.number, *([] if alone else [series]))

    def _last_along_tokens(self, buckets: _Columns) -> _Last:
        """Return the last value of each bucket. Among checkpoints with equal tokens, the highest step is last."""
        query = select(MetricValue.series_id, self.number, *_LAST)
        query = self.window.narrow(query, self.ids).order_by(self.window.column, MetricValue.step)
        rows = zip(*read_columns(self.session, query), strict=True)
        last = {(series, number): rest for series, number, *rest in rows}
        keys = zip(buckets.series, buckets.number, strict=True)
        columns = [list(column) for column in zip(*(last[key] for key in keys), strict=True)]
        return _last_of(columns or [[] for _ in _LAST])

    def _special(self) -> dict[tuple[int, int], _Special]:
        """Return the counts of the buckets with values that are not finite, by series and number of the bucket."""
        kinds = (NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY)
        counts = [func.sum(case((MetricValue.kind == code, 1), else_=0)) for code in kinds]
        rows = self.session.execute(
            self.window.narrow(select(MetricValue.series_id, self.number, *counts), self.ids)
            .where(MetricValue.kind != FINITE)
            .group_by(MetricValue.series_id, self.number)
        )
        return {(series, number): _Special(*rest) for series, number, *rest in rows}


@dataclass(frozen=True)
class _Special:
    """Counts of values that are not finite, which few buckets have, and which a separate query reads."""

    nan: int
    positive_infinity: int
    negative_infinity: int


_NOTHING = _Special(0, 0, 0)


def _mean(total: float | None, finite: int, low: float | None, high: float | None) -> float | None:
    if total is None or low is None or high is None or not -LARGE < low <= high < LARGE:
        return None
    # Rounding may push the mean beyond the lowest or highest value.
    return min(max(total / finite, low), high)
