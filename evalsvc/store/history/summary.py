"""The newest and the best value of every series of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Subquery, and_, func, select
from sqlalchemy.orm import Session

from evalsvc.store.history.reading import number_or_word, read_imports
from evalsvc.store.history.series import choose_series, run_series, series_heads
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import FINITE, MetricValue

BEST: dict[str, Any] = {"lower": func.min, "higher": func.max}
"""What is best, by direction; of a metric without one nothing is."""


def read_summary(session: Session, run: str, names: Sequence[str] = (), variant: str | None = None) -> dict[str, Any]:
    """Of each series `count`, and the `latest` and the `best` value.

    Each is `{"step", "value", "stderr", "n", "groups", "import"}`.

    The best is the lowest or highest finite one by the metric's direction, of equals the first; None where the metric
    has no direction or no finite value. Names may be patterns; without any, all metrics.

    Raises:
        UnknownName: no such run, metric or variant; near misses are named.
    """
    row = find_run(session, run)
    chosen = choose_series(run_series(session, row), names, variant)
    ids = [item.id for item in chosen]
    query = select(MetricValue.series_id, func.count().label("size")).where(MetricValue.series_id.in_(ids))
    counts = {row.series_id: row.size for row in session.execute(query.group_by(MetricValue.series_id))}
    latest = _values(session, _latest(ids))
    best: dict[int, dict[str, Any]] = {}
    for direction in BEST:
        best |= _values(session, _best([item.id for item in chosen if item.direction == direction], direction))
    return {
        "run": run,
        "series": [
            {
                **head,
                "count": counts.get(item.id, 0),
                "latest": latest.get(item.id),
                "best": best.get(item.id),
            }
            for item, head in zip(chosen, series_heads(session, chosen), strict=True)
        ],
        "imports": read_imports(session, row),
    }


def _latest(ids: Sequence[int]) -> Subquery:
    """The last step of each series."""
    query = select(MetricValue.series_id, func.max(MetricValue.step).label("step"))
    return query.where(MetricValue.series_id.in_(ids)).group_by(MetricValue.series_id).subquery()


def _best(ids: Sequence[int], direction: str) -> Subquery:
    """The first step at which each series has its best value."""
    finite = (MetricValue.series_id.in_(ids), MetricValue.kind == FINITE)
    extremes = (
        select(MetricValue.series_id, BEST[direction](MetricValue.value).label("value"))
        .where(*finite)
        .group_by(MetricValue.series_id)
        .subquery()
    )
    has_it = and_(extremes.c.series_id == MetricValue.series_id, extremes.c.value == MetricValue.value)
    query = select(MetricValue.series_id, func.min(MetricValue.step).label("step")).join(extremes, has_it)
    return query.where(*finite).group_by(MetricValue.series_id).subquery()


def _values(session: Session, places: Subquery) -> dict[int, dict[str, Any]]:
    """By series, its value at a step."""
    rows = session.scalars(
        select(MetricValue).join(
            places, and_(places.c.series_id == MetricValue.series_id, places.c.step == MetricValue.step)
        )
    )
    return {
        row.series_id: {
            "step": row.step,
            "value": number_or_word(row.value, row.kind),
            "stderr": row.stderr,
            "n": row.n,
            "groups": row.groups,
            "import": row.import_id,
        }
        for row in rows
    }
