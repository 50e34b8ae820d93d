"""The history of any runs as one long table, a row per value, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.store.history import number_or_word
from evalsvc.store.series import matches
from evalsvc.store.submission import find_run
from evalsvc.store.tables import Checkpoint, Evaluation, Import, MetricValue, Run, Series, Task

COLUMNS = (
    "run",
    "step",
    "variant",
    "tokens",
    "task",
    "metric",
    "value",
    "stderr",
    "n",
    "unit",
    "direction",
    "baseline",
    "protocol",
    "evaluation",
    "source",
)
"""`tokens`: what the checkpoint had seen, where it was posted with that. `evaluation`: the id of the one that measured
the value, of which `task` is a task. `source`: of an imported value, which has none of the three, where it is from."""

ROWS = 1000
"""Read at once."""


def find_series(session: Session, runs: Sequence[str], metrics: Sequence[str], variant: str | None) -> list[int]:
    """The ids of the series of these runs and metrics (names, or patterns such as `arc_*/acc`); without any, of all.

    Raises:
        UnknownName: there is no such run; none of these runs has such a metric or variant. Near ones are named.
    """
    query = select(Series.id, Series.metric, Series.variant)
    if runs:
        query = query.where(Series.run_id.in_([find_run(session, run).id for run in runs]))
    rows = session.execute(query).all()
    names, variants = {row.metric for row in rows}, {row.variant for row in rows}
    for metric in metrics:
        if not any(matches(name, metric) for name in names):
            raise UnknownName.among("metric", metric, names, "it appears once an evaluation has measured it")
    if variant is not None and variant not in variants:
        raise UnknownName.among("variant", variant, variants)
    return [
        row.id
        for row in rows
        if variant in (None, row.variant) and (not metrics or any(matches(row.metric, metric) for metric in metrics))
    ]


def read_table(session: Session, series: Sequence[int]) -> Iterator[list[Any]]:
    """The rows of COLUMNS, by run, step, variant and metric; NaN and infinities are strings. Read piece by piece."""
    query = (
        select(
            Run.name.label("run"),
            MetricValue.step,
            Series.variant,
            Checkpoint.tokens_seen.label("tokens"),
            Series.metric,
            MetricValue.value,
            MetricValue.kind,
            MetricValue.stderr,
            MetricValue.n,
            Series.unit,
            Series.direction,
            Series.baseline,
            Series.protocol_id.label("protocol"),
            MetricValue.evaluation_id.label("evaluation"),
            Import.source,
        )
        .join(Series, Series.id == MetricValue.series_id)
        .join(Run, Run.id == Series.run_id)
        .outerjoin(Evaluation, Evaluation.id == MetricValue.evaluation_id)
        .outerjoin(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .outerjoin(Import, Import.id == MetricValue.import_id)
        .where(Series.id.in_(series))
        .order_by(Run.name, MetricValue.step, Series.variant, Series.metric, Series.id)
    )
    step: tuple[Any, ...] = ()
    tasks: dict[tuple[int, str, str], str] = {}
    for row in session.execute(query).yield_per(ROWS):
        if step != (row.run, row.step, row.variant):
            # An evaluation is of one step, so what is known of those before is not asked for again.
            step, tasks = (row.run, row.step, row.variant), {}
        key = (row.evaluation, row.metric, row.protocol)
        if row.evaluation is not None and key not in tasks:
            tasks |= _tasks(session, row.evaluation)
        cells = {**row._mapping, "task": tasks.get(key), "value": number_or_word(row.value, row.kind)}
        yield [cells[name] for name in COLUMNS]


def _tasks(session: Session, evaluation_id: int) -> dict[tuple[int, str, str], str]:
    """Which task of an evaluation measured what, by its id, metric and protocol."""
    rows = session.execute(select(Task.name, Task.metrics).where(Task.evaluation_id == evaluation_id)).all()
    return {
        (evaluation_id, metric["name"], metric["protocol"]): row.name for row in rows for metric in row.metrics or ()
    }
