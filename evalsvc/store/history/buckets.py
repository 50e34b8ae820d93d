"""A history in buckets: what a curve of many values needs to be drawn, computed where the values are.

The window, or without one the x from the first to the last value of all series that are asked for, is cut into at most
`points` ranges of equal width w = ⌈range / points⌉, whole numbers; bucket i holds first + i·w ≤ x < first + (i + 1)·w.
All series of an answer have the same ranges, and of ranges without values there is no bucket.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from evalsvc.store.history.axis import WHOLE, Window
from evalsvc.store.history.reading import INT64, append_columns, number_or_word
from evalsvc.store.history.series import choose_series, metric_names, run_series, series_heads
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import FINITE, NAN, NEGATIVE_INFINITY, POSITIVE_INFINITY, MetricValue

LARGE = 1e290
"""Values from here on are summed apart, divided by SHRINK: PostgreSQL fails where a sum overflows, SQLite goes on with
an infinity, and it is the mean that is asked for, which does not overflow."""

SHRINK = 2.0**32


COLUMNS = (
    "x",
    "last",
    "min",
    "max",
    "mean",
    "count",
    "nan",
    "positive_infinity",
    "negative_infinity",
    "imported",
)
"""Of a series in an answer. `x`: of the last value of the bucket, a place where there is a value. `last`: that value.
`min`, `max`, `mean`: of the finite ones; None where there is none. `count`: of all, finite or not; the three after it
of those that are not; and of those that were not measured here."""


def read_buckets(
    session: Session,
    run: str,
    names: Sequence[str] = (),
    variant: str | None = None,
    window: Window = WHOLE,
    points: int = 500,
) -> dict[str, Any]:
    """What `reading.read_history` reads, in at most `points` buckets a series.

    Raises:
        UnknownName, InvalidRequest: as `read_history`.
    """
    row = find_run(session, run)
    everything = run_series(session, row)
    chosen = choose_series(everything, names, variant)
    if chosen:
        window.require_tokens(session, row)
    ids = sorted(item.id for item in chosen)
    start, width = _ranges(session, window, ids, points)
    buckets = _Buckets(session, window, ids, start, width)
    omitted = window.count_omitted(session, ids)
    heads = series_heads(session, chosen)
    return {
        "run": run,
        "x": window.x,
        "sampled": True,
        "start": start,
        "width": width,
        "series": [
            {**head, **buckets.of(item.id), "omitted": omitted.get(item.id, 0)}
            for item, head in zip(chosen, heads, strict=True)
        ],
        "names": metric_names(everything),
    }


def _ranges(session: Session, window: Window, ids: Sequence[int], points: int) -> tuple[int, int]:
    """The beginning of the first bucket and the width of all."""
    start, end = window.first, window.last
    if start is None or end is None:
        # Each end of each series apart: the database finds it by the key. It walks all values for both in one query, or
        # for those of many series.
        column = window.column
        pairs = [
            [session.scalar(window.values([identity], extreme(column))) for extreme in (func.min, func.max)]
            for identity in ids
        ]
        ends = [pair for pair in pairs if None not in pair]
        start = min((first for first, _ in ends), default=0) if start is None else start
        end = max((last for _, last in ends), default=start) if end is None else end
    return start, max(1, -(-(end - start + 1) // points))


class _Buckets:
    """The buckets of some series, in one column each, by series and place."""

    def __init__(self, session: Session, window: Window, ids: Sequence[int], start: int, width: int) -> None:
        self.session, self.window, self.ids = session, window, ids
        # One bucket of all steps that there can be is wider than the largest number that a database has.
        self.number = (window.column - start) // width if width < INT64 else window.column - window.column
        self.columns = self._read()

    def of(self, series: int) -> dict[str, list[Any]]:
        found = self.columns["series"]
        part = slice(bisect_left(found, series), bisect_right(found, series))
        return {name: self.columns[name][part] for name in COLUMNS}

    def _read(self) -> dict[str, list[Any]]:
        sums = self._sums()
        names = ["series", "number", "x", "count", "finite", "min", "max", "total", "imported"]
        if self.window.x == "tokens":
            columns = self._rows(sums.order_by("series", "number"), names)
            last, last_kind = self._last_along_tokens(columns)
        else:
            # Without the window's conditions, which hold anyway: with them, SQLite walks all values for each bucket.
            ends = sums.subquery()
            value_of = and_(MetricValue.series_id == ends.c.series, MetricValue.step == ends.c.x)
            query = select(*ends.c, MetricValue.value, MetricValue.kind).join(MetricValue, value_of)
            columns = self._rows(query.order_by(ends.c.series, ends.c.number), [*names, "last", "last_kind"])
            last, last_kind = columns["last"], columns["last_kind"]
        special = self._special() if self._has_special(columns) else {}
        keys = list(zip(columns["series"], columns["number"], strict=True))
        rest = [special.get(key, _NOTHING) for key in keys] if special else [_NOTHING] * len(keys)
        return columns | {
            "last": [number_or_word(*pair) for pair in zip(last, last_kind, strict=True)] if any(last_kind) else last,
            "mean": [
                _mean(*row)
                for row in zip(
                    columns["total"],
                    (item.large for item in rest),
                    *(columns[name] for name in ("finite", "min", "max")),
                    strict=True,
                )
            ],
            "nan": [item.nan for item in rest],
            "positive_infinity": [item.positive_infinity for item in rest],
            "negative_infinity": [item.negative_infinity for item in rest],
        }

    def _sums(self) -> Select[Any]:
        value = MetricValue.value
        # Of one series alone the database need not sort by it, which is a fifth of the time.
        alone = len(self.ids) == 1
        series: Any = literal(self.ids[0]) if alone else MetricValue.series_id
        return self.window.values(
            self.ids,
            series.label("series"),
            self.number.label("number"),
            func.max(self.window.column).label("x"),
            func.count().label("size"),
            func.count(value).label("finite"),
            func.min(value).label("min"),
            func.max(value).label("max"),
            func.sum(case((and_(value > -LARGE, value < LARGE), value))).label("total"),
            func.count(MetricValue.import_id).label("imported"),
        ).group_by(self.number, *([] if alone else [series]))

    def _rows(self, query: Select[Any], names: Sequence[str]) -> dict[str, list[Any]]:
        columns: list[list[Any]] = [[] for _ in names]
        append_columns(self.session, query, columns)
        return dict(zip(names, columns, strict=True))

    def _last_along_tokens(self, columns: Mapping[str, list[Any]]) -> tuple[list[Any], list[Any]]:
        """Values and kinds. Several checkpoints may have seen equally many tokens; the last step is the last value."""
        value = (MetricValue.series_id, self.number.label("number"), MetricValue.value, MetricValue.kind)
        query = self.window.values(self.ids, *value).order_by(self.window.column, MetricValue.step)
        rows = self._rows(query, ("series", "number", "value", "kind"))
        found = {(series, number): pair for series, number, *pair in zip(*rows.values(), strict=True)}
        pairs = [found[key] for key in zip(columns["series"], columns["number"], strict=True)]
        return [value for value, _ in pairs], [kind for _, kind in pairs]

    def _has_special(self, columns: Mapping[str, list[Any]]) -> bool:
        if columns["count"] != columns["finite"]:
            return True
        return bool(columns["min"]) and not -LARGE < min(columns["min"]) <= max(columns["max"]) < LARGE

    def _special(self) -> dict[tuple[int, int], _Special]:
        """By series and number of the bucket, of those that have values that are large or not finite."""
        value, kind = MetricValue.value, MetricValue.kind
        kinds = (NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY)
        counts = [func.sum(case((kind == code, 1), else_=0)) for code in kinds]
        large = func.coalesce(func.sum(case((or_(value >= LARGE, value <= -LARGE), value / SHRINK))), 0.0)
        rows = self.session.execute(
            self.window.values(self.ids, MetricValue.series_id, self.number, large, *counts)
            .where(or_(kind != FINITE, value >= LARGE, value <= -LARGE))
            .group_by(MetricValue.series_id, self.number)
        )
        return {(series, number): _Special(*rest) for series, number, *rest in rows}


@dataclass(frozen=True)
class _Special:
    """What few buckets have, and all would pay for."""

    large: float
    """The sum of the finite values from LARGE on, divided by SHRINK."""
    nan: int
    positive_infinity: int
    negative_infinity: int


_NOTHING = _Special(0.0, 0, 0, 0)


def _mean(total: float | None, large: float, finite: int, low: float, high: float) -> float | None:
    if not finite:
        return None
    mean = (total or 0.0) / finite + large / finite * SHRINK
    # Rounding may carry it past the ends, and past the largest number to infinity.
    return min(max(mean, low), high)
