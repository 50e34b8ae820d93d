"""The headline of a run, which are the metrics to show first, and the headlines of several runs for a table of runs.

The answer about a run depends on the run's history, on the history of the run's base, and on the headlines of suites.
`marked_runs` reads numbers that change with the first two, so that the service can keep an answer until one changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from evalsvc import __version__
from evalsvc.checkpoints.expression import Step
from evalsvc.metrics.shown_metrics import MOST, default_headline
from evalsvc.spec.documents.fields import Direction, Number
from evalsvc.spec.documents.history import Headline, HeadlineSeries, LeftOutMetric, Point, RunHeadlines, SeriesHead
from evalsvc.store.history.gaps import gaps_marks
from evalsvc.store.history.reading import best_points, number_or_word, points_at
from evalsvc.store.history.series import choose_series
from evalsvc.store.history.writing import Remember, history_tag
from evalsvc.store.lookup import find_run
from evalsvc.store.runs.base import base_step
from evalsvc.store.tables import Checkpoint, Evaluation, MetricValue, Run, Series, Task
from evalsvc.store.views import document_of

HeadlineOf = Callable[[str], Sequence[str]]
"""A function that returns the headline of a suite by name; empty for a suite without one, broken or deleted."""


def read_headline(session: Session, run: str, headline_of: HeadlineOf) -> Headline:
    """Return the metrics to show first: those of the headlines of the run's suites that have a value, or a default."""
    row = find_run(session, run)
    names = {metric.name: metric for metric in choose_series(session, run, (), None).names}
    directions = {name: metric.direction for name, metric in names.items()}
    chosen = named_metrics(directions, evaluated_by(session, row), headline_of)
    return Headline(
        run=run,
        metrics=chosen or default_headline(directions),
        chosen_by="suites" if chosen else "rule",
        names=list(names.values()),
        left_out=_left_out(session, row),
    )


def named_metrics(known: Collection[str], suites: Sequence[str], headline_of: HeadlineOf) -> list[str]:
    """Return the known metrics that the headlines of suites name."""
    return list(dict.fromkeys(metric for suite in suites for metric in headline_of(suite) if metric in known))


def evaluated_by(session: Session, run: Run) -> Sequence[str]:
    """Return the suites that evaluated the run's current checkpoints, in the order of first use."""
    return session.scalars(
        select(Evaluation.suite)
        .join(Checkpoint)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .group_by(Evaluation.suite)
        .order_by(func.min(Evaluation.id))
    ).all()


def _left_out(session: Session, run: Run) -> list[LeftOutMetric]:
    newest = (
        select(func.max(Evaluation.id))
        .join(Checkpoint)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .where(Evaluation.state.in_(("succeeded", "partly_failed")))
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


@dataclass(frozen=True)
class Question:
    """What is asked of every run."""

    metrics: tuple[str, ...] = ()
    """Names of metrics; empty for the headline of each run. Names that a run lacks are left out."""
    points: int | None = None
    """Most values of each series along training; None for none."""
    last: int | None = None
    """Highest step; None for all steps."""
    near: bool = False
    """Whether the steps within the noise of the best one are asked for."""
    variant: str | None = None
    """Variant of the weights; None for the one with the newest value."""


@dataclass(frozen=True)
class MarkedRun:
    """A run with numbers that change whenever the answer about the run may."""

    run: Run
    mark: Sequence[object]

    def tag(self, question: object) -> str:
        return history_tag(self.run, __version__, [question, self.mark])


def marked_runs(session: Session, names: Sequence[str]) -> list[MarkedRun]:
    """Return runs in the order of their names."""
    rows = {run.name: run for run in session.scalars(select(Run).where(Run.name.in_(names)))}
    runs = [rows[name] if name in rows else find_run(session, name) for name in dict.fromkeys(names)]
    bases = {run.id: base_step(run) for run in runs}
    others = session.scalars(select(Run).where(Run.name.in_({base.run for base in bases.values()}))).all()
    gaps = gaps_marks(session, [run.id for run in (*runs, *others)])
    marks = {run.name: [run.id, run.created_at.isoformat(), run.history_version, gaps[run.id]] for run in others}
    return [MarkedRun(run, [gaps[run.id], list(astuple(bases[run.id])), marks.get(bases[run.id].run)]) for run in runs]


def headline_of_run(session: Session, marked: MarkedRun, headline_of: HeadlineOf, remember: Remember) -> list[str]:
    """Return the metrics of a run to show first, at most `MOST`; see `read_headline`."""

    def make() -> bytes:
        query = select(Series.metric, Series.direction).where(Series.run_id == marked.run.id).order_by(Series.metric)
        return json.dumps([dict(session.execute(query).all()), list(evaluated_by(session, marked.run))]).encode()

    directions, suites = json.loads(remember(marked.run.name, marked.tag("suites"), make))
    return (named_metrics(directions, suites, headline_of) or default_headline(directions))[:MOST]


def read_run_headlines(session: Session, run: Run, question: Question) -> RunHeadlines:
    """Return the newest series of each metric of a run, with the newest, the best and the base's value."""
    chosen = choose_series(session, run.name, (), question.variant)
    wanted = {identity: head for identity, head in chosen.heads.items() if head.metric in question.metrics}
    ends: dict[str, tuple[int, bool, int]] = {}
    # A subquery for each series: so the database finds the step by the key, and walks no values.
    step = select(func.max(MetricValue.step)).where(MetricValue.series_id == Series.id)
    step = step if question.last is None else step.where(MetricValue.step <= question.last)
    rows = session.execute(select(Series.id, step.scalar_subquery()).where(Series.id.in_(wanted)))
    for identity, end in rows:
        head = wanted[identity]
        if end is not None:
            ends[head.metric] = max(ends.get(head.metric, (-1, False, 0)), (end, head.variant == "raw", identity))
    newest = {identity: step for step, _, identity in ends.values()}
    directions: dict[int, Direction] = {identity: wanted[identity].direction for identity in newest}
    latest = points_at(session, list(newest.items()))
    best = best_points(session, directions, question.last)
    along = _along(session, newest, question.points) if question.points else {}
    bases = _base_values(session, run, {identity: wanted[identity] for identity in newest})
    series = []
    for identity, at in newest.items():
        base_name, base = bases.get(identity, (None, None))
        x, values = along.get(identity, ([], []))
        series.append(
            HeadlineSeries(
                **vars(wanted[identity]),
                latest=latest[identity, at],
                best=best.get(identity),
                base=base,
                base_name=base_name,
                x=x,
                values=values,
                at_chance_since=_at_chance_since(session, identity, wanted[identity].baseline, latest[identity, at]),
            )
        )
    order = {metric: place for place, metric in enumerate(question.metrics)}
    return RunHeadlines(run=run.name, series=sorted(series, key=lambda item: order[item.metric]))


def _at_chance_since(session: Session, series: int, chance: Number | None, newest: Point) -> int | None:
    value = MetricValue
    if chance is None or newest.low is None or newest.high is None or not newest.low <= float(chance) <= newest.high:
        return None
    within = (value.series_id == series, value.step <= newest.step)
    is_apart = or_(value.low > chance, value.high < chance, value.low.is_(None), value.high.is_(None))
    apart = select(func.max(value.step)).where(*within, is_apart).scalar_subquery()
    return session.scalar(select(func.min(value.step)).where(*within, value.step > func.coalesce(apart, -1)))


def _base_values(session: Session, run: Run, heads: Mapping[int, SeriesHead]) -> dict[int, tuple[str, Point]]:
    """Return the name of the base and its value under the same protocol, by the id of the series."""
    base = base_step(run)
    query = select(Series).join(Run, Run.id == Series.run_id).where(Run.name == base.run)
    of_base = session.scalars(query.where(Series.metric.in_({head.metric for head in heads.values()})))
    ids = {(series.metric, series.variant, series.protocol_id): series.id for series in of_base}
    points = points_at(session, [(identity, base.step) for identity in ids.values()])
    of_series: dict[int, tuple[str, Point]] = {}
    for identity, head in heads.items():
        for variant in (head.variant, "raw") if run.base is None else (base.variant,):
            key = ids.get((head.metric, variant, head.protocol), 0), base.step
            if key in points:
                of_series[identity] = str(Step(base.run, base.step, variant)), points[key]
    return of_series


def _along(session: Session, newest: Mapping[int, int], points: int) -> dict[int, tuple[list[int], list[Number]]]:
    value = MetricValue
    along: dict[int, tuple[list[int], list[Number]]] = {}
    for identity, last in newest.items():
        within = (value.series_id == identity, value.step <= last)
        query = select(value.step, value.value, value.kind).where(*within)
        size = session.scalar(select(func.count()).where(*within)) or 0
        if size > points:
            rank = func.row_number().over(order_by=value.step).label("rank")
            ranked = select(value.step, rank).where(*within).subquery()
            kept = {size, *(1 + place * (size - 1) // (points - 1) for place in range(points) if points > 1)}
            query = query.where(value.step.in_(select(ranked.c.step).where(ranked.c.rank.in_(kept))))
        rows = session.execute(query.order_by(value.step)).all()
        along[identity] = [row.step for row in rows], [number_or_word(row.value, row.kind) for row in rows]
    return along
