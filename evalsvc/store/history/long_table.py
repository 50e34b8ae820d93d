"""The history of runs as a long table with a row for each value, for notebooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec.documents.history import TableColumns
from evalsvc.store.history.reading import VALUES, number_or_word
from evalsvc.store.history.series import wanted_metrics
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Checkpoint, Evaluation, Import, MetricValue, Run, Series, Task

COLUMNS = tuple(TableColumns.model_fields)

ROWS = 1000
"""The most rows on a page, except for a page with a single step."""

SERIES = 1000
"""The most ids in a query."""


@dataclass(frozen=True)
class TableRun:
    name: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Page:
    """A page of a table: the steps of a run from `first` to `last`."""

    run: TableRun
    first: int
    last: int


def find_series(session: Session, runs: Sequence[str], metrics: Sequence[str], variant: str | None) -> list[TableRun]:
    """Return runs, sorted by name, with the series of metrics, or patterns, and a variant; all without them."""
    query = select(Run.name, Series).join(Run, Run.id == Series.run_id)
    if runs:
        query = query.where(Series.run_id.in_([find_run(session, run).id for run in runs]))
    rows = session.execute(query).all()
    wanted = wanted_metrics({series.metric for _, series in rows}, metrics)
    variants = {series.variant for _, series in rows}
    if variant is not None and variant not in variants:
        raise UnknownName.among("variant", variant, variants)
    by_run: dict[str, list[Series]] = {}
    for name, series in rows:
        if series.metric in wanted and variant in (None, series.variant):
            by_run.setdefault(name, []).append(series)
    return [TableRun(name, by_run[name]) for name in sorted(by_run)]


def count_rows(session: Session, runs: Sequence[TableRun]) -> int:
    ids = [series.id for run in runs for series in run.series]
    queries = (select(func.count()).where(MetricValue.series_id.in_(part)) for part in _parts(ids))
    return sum(session.scalar(query) or 0 for query in queries)


def cut_pages(session: Session, run: TableRun) -> list[Page]:
    """Return the pages of a run, without gaps between. Values that are written later move no value to another page."""
    sizes: Counter[int] = Counter()
    for ids in _parts([series.id for series in run.series]):
        query = select(MetricValue.step, func.count()).where(MetricValue.series_id.in_(ids))
        for step, number in session.execute(query.group_by(MetricValue.step)):
            sizes[step] += number
    pages: list[Page] = []
    first, size = 0, 0
    steps = sorted(sizes)
    for step, following in zip_longest(steps, steps[1:]):
        size += sizes[step]
        if following is None or size + sizes[following] > ROWS:
            pages.append(Page(run, first, step))
            first, size = step + 1, 0
    return pages


def read_page(session: Session, page: Page) -> list[list[object]]:
    """Return the rows of COLUMNS on a page by step, variant and metric. NaN and infinities are strings."""
    series = {item.id: item for item in page.run.series}
    query = (
        select(MetricValue.series_id, MetricValue.step, *VALUES, MetricValue.evaluation_id.label("evaluation"))
        .add_columns(Checkpoint.tokens_seen.label("tokens"), Import.source)
        .outerjoin(Evaluation, Evaluation.id == MetricValue.evaluation_id)
        .outerjoin(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .outerjoin(Import, Import.id == MetricValue.import_id)
        .where(MetricValue.step.between(page.first, page.last))
    )
    values = [
        (series[row.series_id], row)
        for ids in _parts(list(series))
        for row in session.execute(query.where(MetricValue.series_id.in_(ids)))
    ]
    tasks = _tasks(session, {row.evaluation for _, row in values if row.evaluation is not None})
    values.sort(key=lambda pair: (pair[1].step, pair[0].variant, pair[0].metric, pair[0].id))
    return [
        [
            *(page.run.name, row.step, head.variant, row.tokens),
            *(tasks.get((row.evaluation, head.metric, head.protocol_id)), head.metric),
            *(number_or_word(row.value, row.kind), row.stderr, row.low, row.high, row.n, row.groups),
            *(head.unit, head.direction, head.baseline, head.protocol_id, row.evaluation, row.source),
        ]
        for head, row in values
    ]


def _tasks(session: Session, evaluations: Collection[int]) -> dict[object, str]:
    query = select(Task.evaluation_id, Task.name, Task.metrics)
    return {
        (row.evaluation_id, metric["name"], metric["protocol"]): row.name
        for ids in _parts(sorted(evaluations))
        for row in session.execute(query.where(Task.evaluation_id.in_(ids)))
        for metric in row.metrics or ()
    }


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + SERIES] for start in range(0, len(ids), SERIES))
