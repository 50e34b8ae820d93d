"""The headline of a run: the metrics to show first, and the requested metrics that could not be measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.metrics.headline import default_headline
from evalsvc.spec.documents.fields import State
from evalsvc.spec.documents.history import Headline, KnownMetric, LeftOutMetric
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Checkpoint, Evaluation, Run, Series, Task
from evalsvc.store.views import document_of

MEASURED: tuple[State, ...] = ("succeeded", "partly_failed")
"""States of evaluations that have results."""

HeadlineOf = Callable[[str], Sequence[str]]
"""A function that returns the headline of a suite by name; empty for a suite without one, broken or deleted."""


def read_headline(session: Session, run: str, headline_of: HeadlineOf) -> Headline:
    """Return the metrics of a run to show first: the headlines of the suites that evaluated the run's checkpoints.

    Metrics without a value are left out. If no headline has a metric with a value, `default_headline` chooses.

    Raises:
        UnknownName: there is no such run; near names are listed.
    """
    row = find_run(session, run)
    rows = session.execute(
        select(Series.metric, Series.unit, Series.direction).where(Series.run_id == row.id).order_by(Series.metric)
    )
    names = {metric: KnownMetric(name=metric, unit=unit, direction=direction) for metric, unit, direction in rows}
    directions = {metric: known.direction for metric, known in names.items()}
    chosen = named_metrics(directions, evaluated_by(session, row), headline_of)
    return Headline(
        run=run,
        metrics=chosen or default_headline(directions),
        chosen_by="suites" if chosen else "rule",
        names=list(names.values()),
        left_out=_left_out(session, row),
    )


def named_metrics(known: Collection[str], suites: Sequence[str], headline_of: HeadlineOf) -> list[str]:
    """Return the metrics that the headlines of suites name, as far as they are known."""
    named = dict.fromkeys(metric for suite in suites for metric in headline_of(suite))
    return [metric for metric in named if metric in known]


def evaluated_by(session: Session, run: Run) -> Sequence[str]:
    """Return the names of the suites that evaluated the run's current checkpoints, in the order of first use."""
    return session.scalars(
        select(Evaluation.suite)
        .join(Checkpoint)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .group_by(Evaluation.suite)
        .order_by(func.min(Evaluation.id))
    ).all()


def _left_out(session: Session, run: Run) -> list[LeftOutMetric]:
    """Return the requested metrics that the newest evaluation of each suite could not measure.

    Evaluations that failed are ignored.
    """
    newest = (
        select(func.max(Evaluation.id))
        .join(Checkpoint)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None), Evaluation.state.in_(MEASURED))
        .group_by(Evaluation.suite)
    )
    tasks = session.execute(
        select(Task.warnings, Checkpoint.step, Checkpoint.variant)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Evaluation.id.in_(newest), Task.warnings.is_not(None))
        .order_by(Task.id)
    )
    return [
        document_of(LeftOutMetric, place, metric=warning["metric"], message=warning["message"])
        for place in tasks
        for warning in place.warnings
        if warning["code"] == "left_out"
    ]
