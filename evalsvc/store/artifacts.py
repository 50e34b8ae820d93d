"""Lists of the artifacts of an evaluation or a run, and pruning of artifacts by the retention rules of runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import Retention, retention_of
from evalsvc.store.history.reading import read_summary
from evalsvc.store.history.series import matches
from evalsvc.store.lookup import find_run
from evalsvc.store.pages import Order, PageRequest, read_page
from evalsvc.store.tables import OVER, Artifact, Checkpoint, Evaluation, Run, Series, Task, now
from evalsvc.store.views import document_of

log = logging.getLogger(__name__)

AT_ONCE = 500
"""The number of rows that one statement updates."""

KINDS = {"completions", "forgetting", "grid", "loss_profile", "nearest_tokens", "sample"}
"""Kinds of artifacts that the tasks of evalsvc leave. The tasks of plug-ins may leave artifacts of other kinds."""


def evaluation_artifacts(
    session: Session, evaluation_id: int, kind: str | None, page: PageRequest
) -> documents.Artifacts:
    """Return a page of an evaluation's artifacts, in the order of the evaluation's tasks."""
    order, question = Order([Task.index, Artifact.id]), ["artifacts of evaluation", evaluation_id, kind]
    return _page(session, [Task.evaluation_id == evaluation_id], kind, order, question, page)


def run_artifacts(
    session: Session, run: Run, kind: str | None, step: int | None, page: PageRequest
) -> documents.Artifacts:
    """Return a page of the artifacts of all evaluations of a run's current checkpoints, ordered by step."""
    which = [Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None)]
    which += [] if step is None else [Checkpoint.step == step]
    order = Order([Checkpoint.step, Checkpoint.variant, Evaluation.id, Task.index, Artifact.id])
    return _page(session, which, kind, order, ["artifacts of run", run.id, kind, step], page)


def _page(
    session: Session,
    which: Sequence[ColumnElement[bool]],
    kind: str | None,
    order: Order,
    question: object,
    page: PageRequest,
) -> documents.Artifacts:
    place = (Task.name.label("task"), Task.evaluation_id.label("evaluation"), Run.name.label("run"))
    query = (
        select(Artifact, *place, Checkpoint.step, Checkpoint.variant)
        .join(Task, Task.id == Artifact.task_id)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(*which)
    )
    if kind is not None:
        is_known = (
            kind in KINDS or session.scalar(select(Artifact.id).where(Artifact.kind == kind).limit(1)) is not None
        )
        if not is_known and (kinds := session.scalars(query.with_only_columns(Artifact.kind).distinct()).all()):
            raise UnknownName.among("kind of artifact", kind, kinds)
        query = query.where(Artifact.kind == kind)
    rows, next_cursor = read_page(session, query, order, question, page)
    names = ("task", "evaluation", "run", "step", "variant")
    artifacts = [
        document_of(documents.Artifact, row.Artifact, **{name: getattr(row, name) for name in names}) for row in rows
    ]
    return documents.Artifacts(artifacts=artifacts, next_cursor=next_cursor)


@dataclass
class Pruned:
    """Artifacts that were pruned, or would be pruned."""

    by_run: dict[str, int] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    contents: dict[str, int] = field(default_factory=dict)
    """The sizes of the contents by digest. Other artifacts may have the same contents."""


def rule_of(run: Run, default: Retention | None) -> Retention | None:
    return default if run.retention is None else retention_of(run.retention)


def retention_view(run: Run, default: Retention | None) -> documents.Retention:
    if (rule := rule_of(run, default)) is None:
        return documents.Retention(run=run.name, keep=None, from_=None)
    return documents.Retention(run=run.name, keep=rule.to_json(), from_="service" if run.retention is None else "run")


def find_prunable(session: Session, default: Retention | None, run: str | None = None) -> Pruned:
    """Return the artifacts of a run, or of all runs, that no retention rule keeps."""
    runs = [find_run(session, run)] if run is not None else session.scalars(select(Run).order_by(Run.name)).all()
    prunable = Pruned()
    for row in runs:
        if (rule := rule_of(row, default)) is not None:
            _add_prunable(session, row, rule, prunable)
    return prunable


def require_metric(session: Session, name: str) -> None:
    """Check that a run of the service has a metric that matches `name` and has a direction, if any has values."""
    rows = session.execute(select(Series.metric, Series.direction).distinct())
    directions = {(row.metric, row.direction) for row in rows}
    fitting = {direction for metric, direction in directions if matches(metric, name)}
    if directions and not fitting:
        hint = "the rule can name a metric once a run has values of the metric"
        raise UnknownName.among("metric", name, {metric for metric, _ in directions}, hint)
    if fitting == {"none"}:
        raise InvalidRequest(
            f"best is {name!r}, a metric without a better direction, so that no value is the best; name a metric whose "
            "direction is lower or higher"
        )


def mark_pruned(session: Session, pruned: Pruned) -> None:
    """Mark artifacts as pruned. The caller removes contents that no other artifact has."""
    unpruned = update(Artifact).where(Artifact.pruned_at.is_(None)).values(pruned_at=now())
    for start in range(0, len(pruned.ids), AT_ONCE):
        session.execute(unpruned.where(Artifact.id.in_(pruned.ids[start : start + AT_ONCE])))


def _add_prunable(session: Session, run: Run, rule: Retention, prunable: Pruned) -> None:
    query = (
        select(Artifact.id, Artifact.sha256, Artifact.size, Evaluation.finished_at)
        .add_columns(Checkpoint.step, Checkpoint.variant, Checkpoint.replaced_at)
        .join(Task, Task.id == Artifact.task_id)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Checkpoint.run_id == run.id, Artifact.pruned_at.is_(None), Evaluation.state.in_(OVER))
        .order_by(Artifact.id)
    )
    rows = session.execute(query).all()
    best = _best_steps(session, run, rule)
    if not rows or best is None:
        return
    steps = sorted({row.step for row in rows if row.replaced_at is None})
    last = set(steps[-rule.last :]) if rule.last else set()
    since = None if rule.days is None else now() - timedelta(days=min(rule.days, 36_500))
    for row in rows:
        is_young = since is not None and (row.finished_at is None or row.finished_at >= since)
        by_step = row.step in last or (rule.every is not None and row.step % rule.every == 0)
        is_kept = row.replaced_at is None and (by_step or (row.step, row.variant) in best)
        if not is_young and not is_kept:
            prunable.by_run[run.name] = prunable.by_run.get(run.name, 0) + 1
            prunable.ids.append(row.id)
            prunable.contents[row.sha256] = row.size


def _best_steps(session: Session, run: Run, rule: Retention) -> set[tuple[int, str]] | None:
    """Return the steps and variants at which the rule's metric is best; None, which keeps all artifacts, if unknown."""
    if rule.best is None:
        return set()
    try:
        series = read_summary(session, run.name, [rule.best]).series
    except UnknownName:
        log.info(
            "no artifacts of run %s are pruned: its rule keeps the best of %s, without values", run.name, rule.best
        )
        return None
    best = {(item.best.step, item.variant) for item in series if item.best is not None}
    if not best:
        log.info("no artifacts of run %s are pruned: %s has no best value", run.name, rule.best)
    return best or None
