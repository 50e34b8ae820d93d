"""A history in buckets, computed by the database, for drawing curves of many values.

The window is cut into at most `points` ranges of equal integer width w = ⌈range / points⌉: bucket i has the values with
first + i·w ≤ x < first + (i + 1)·w. Without a window, the range extends from the first to the last x of all requested
series. All series of an answer have the same ranges. A range without values has no bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, SQLColumnExpression, and_, case, func, literal, select
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.history import Buckets, BucketSeries
from evalsvc.store.history.gaps import read_gaps
from evalsvc.store.history.reading import VALUES, Table, part_of, read_table
from evalsvc.store.history.series import WHOLE, Window, choose_series
from evalsvc.store.pages import INT64, MAX_VALUES
from evalsvc.store.tables import FINITE, WORDS, Checkpoint, MetricValue, checkpoint_parents

LARGE = 1e290
"""A bucket with a finite value of at least this magnitude has no mean. The sum of such values may overflow: PostgreSQL
raises an error, and SQLite returns infinity."""

KINDS = dict(zip(("nan", "positive_infinity", "negative_infinity"), WORDS, strict=True))
"""The kinds of values that are not finite, by the field of their counts."""

LAST = ("step", *(column.key for column in VALUES))
"""The columns of the last value of a bucket."""

FIELDS = ("x", "stderr", "low", "high", "n", "min", "max", "count", *KINDS, "imported")
"""The columns that an answer has as they are."""


def read_buckets(
    session: Session,
    run: str,
    names: Sequence[str] = (),
    variant: str | None = None,
    window: Window = WHOLE,
    points: int = 500,
) -> Buckets:
    """Read a run's series in at most `points` buckets each; `names` may be patterns, and by default all are read."""
    chosen = choose_series(session, run, names, variant)
    if (size := points * len(chosen.ids)) > 5 * MAX_VALUES:
        raise InvalidRequest(
            f"points={points} of {len(chosen.ids):,} series is {size:,}; ask for fewer points or metrics"
        )
    window.require_tokens(session, chosen)
    start, width = _ranges(session, window, chosen.ids, points)
    # The width of a single bucket for all possible steps exceeds the largest integer of a database.
    number = (window.column - start) // width if width < INT64 else window.column - window.column
    table = _read(session, window, chosen.ids, number)
    current = select(Checkpoint.variant, Checkpoint.step).filter_by(run_id=chosen.run.id, replaced_at=None)
    has_parents = Checkpoint.id.in_(select(checkpoint_parents.c.checkpoint_id))
    computed = current.where(has_parents, Checkpoint.size == 0)
    virtual = {(variant, step) for variant, step in session.execute(computed)}
    omitted = window.count_omitted(session, chosen.ids)
    series = []
    for identity, head in chosen.heads.items():
        part = part_of(table, identity)
        means = zip(part["total"], part["finite"], part["min"], part["max"], strict=True)
        fields: dict[str, Any] = {name: part[name] for name in FIELDS}
        series.append(
            BucketSeries(
                **vars(head),
                **fields,
                last=part["value"],
                groups=part["groups"] if any(part["groups"]) else None,
                mean=[_mean(*sums) for sums in means],
                virtual=[(head.variant, step) in virtual for step in part["step"]],
                omitted=omitted.get(identity, 0),
            )
        )
    return Buckets(
        run=run,
        x=window.x,
        sampled=True,
        start=start,
        width=width,
        series=series,
        names=chosen.names,
        **vars(read_gaps(session, chosen, window)),
    )


def _ranges(session: Session, window: Window, ids: Sequence[int], points: int) -> tuple[int, int]:
    start, end = window.first, window.last
    if start is None or end is None:
        # One query for each end of each series: the database reads the end from the key. A query for both ends or for
        # several series would scan all values.
        ends = (
            [session.scalar(window.narrow(select(extreme(window.column)), [identity])) for identity in ids]
            for extreme in (func.min, func.max)
        )
        firsts, lasts = ([x for x in values if x is not None] for values in ends)
        start = min(firsts, default=0) if start is None else start
        end = max(lasts, default=start) if end is None else end
    return start, max(1, -(-(end - start + 1) // points))


def _read(session: Session, window: Window, ids: Sequence[int], number: SQLColumnExpression[int | None]) -> Table:
    sums = _sums(window, ids, number)
    last = [getattr(MetricValue, name) for name in LAST]
    if window.x == "tokens":
        table = read_table(session, sums.order_by("series_id", "number"))
        # Among checkpoints with equal tokens, the highest step is last.
        order = window.column.desc(), MetricValue.step.desc()
        place = func.row_number().over(partition_by=(MetricValue.series_id, number), order_by=order).label("place")
        columns = MetricValue.series_id, number.label("number"), *last, place
        ranked = window.narrow(select(*columns), ids).subquery()
        rows = read_table(session, select(ranked).where(ranked.c.place == 1).order_by("series_id", "number"))
        table |= {name: rows[name] for name in LAST}
    else:
        # The window's conditions are left out because they hold here. With them, SQLite would scan all values for
        # each bucket.
        ends = sums.subquery()
        value_of = and_(MetricValue.series_id == ends.c.series_id, MetricValue.step == ends.c.x)
        query = select(*ends.c, *last).join(MetricValue, value_of)
        table = read_table(session, query.order_by(ends.c.series_id, ends.c.number))
    special = {}
    if table["count"] != table["finite"]:  # a query of its own, since few buckets have such values
        counts = [func.sum(case((MetricValue.kind == code, 1), else_=0)) for code in KINDS.values()]
        query = window.narrow(select(MetricValue.series_id, number, *counts), ids)
        query = query.where(MetricValue.kind != FINITE).group_by(MetricValue.series_id, number)
        special = {(series, place): rest for series, place, *rest in session.execute(query)}
    nothing = [0] * len(KINDS)
    rows_of_counts = [special.get(key, nothing) for key in zip(table["series_id"], table["number"], strict=True)]
    return table | {name: [row[place] for row in rows_of_counts] for place, name in enumerate(KINDS)}


def _sums(window: Window, ids: Sequence[int], number: SQLColumnExpression[int | None]) -> Select[*tuple[object, ...]]:
    value = MetricValue.value
    # Without grouping by the only series, the database need not sort by series, which takes a fifth of the time.
    alone = len(ids) == 1
    series = literal(ids[0]) if alone else MetricValue.series_id
    columns: list[SQLColumnExpression[object]] = [
        series.label("series_id"),
        number.label("number"),
        func.max(window.column).label("x"),
        func.count().label("count"),
        func.count(value).label("finite"),
        func.min(value).label("min"),
        func.max(value).label("max"),
        func.sum(case((and_(value > -LARGE, value < LARGE), value))).label("total"),
        func.count(MetricValue.import_id).label("imported"),
    ]
    return window.narrow(select(*columns), ids).group_by(number, *([] if alone else [series]))


def _mean(total: float | None, finite: int, low: float | None, high: float | None) -> float | None:
    if total is None or low is None or high is None or not -LARGE < low <= high < LARGE:
        return None
    # Rounding may push the mean beyond the lowest or highest value.
    return min(max(total / finite, low), high)
