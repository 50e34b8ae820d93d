"""Deleting a run, with all that came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Delete, Select, delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from evalsvc.errors import Conflict, WrongState, first_few
from evalsvc.store.hold import hold_all
from evalsvc.store.ids import raise_floors
from evalsvc.store.lookup import find_run, step_of
from evalsvc.store.tables import (
    OVER,
    Artifact,
    Attempt,
    Checkpoint,
    Evaluation,
    Import,
    MetricValue,
    Run,
    Series,
    Shard,
    Task,
    checkpoint_parents,
)

NAMED = 5
"""How many of what is in the way are named."""


@dataclass(frozen=True)
class Deleted:
    """What is gone from the database, and what of the data folder nobody may need any more."""

    run: str
    checkpoints: int
    evaluations: int
    values: int
    artifacts: int
    spooled: Sequence[tuple[int, str]]
    """Id and path of checkpoints of which there may be a spooled copy."""
    tasks: Sequence[int]
    """Ids, under which outputs of shards may lie."""
    artifact_contents: Sequence[str]
    item_contents: Sequence[str]
    """Digests. Other rows may name the same content."""


def delete_run(session: Session, name: str, cancel: bool) -> Deleted:
    """Delete a run: its checkpoints, their evaluations with all results, its history and its plan.

    An attempt that runs is told to stop by the coordinator, and its result is late.

    Raises:
        UnknownName: there is no such run.
        WrongState: evaluations of it are not over, and `cancel` is not set.
        Conflict: another run has it as its base, or has virtual checkpoints that are made of its checkpoints.
    """
    run = find_run(session, name)
    rows = _Rows(run.id)
    # From here on nobody stores a result for this run.
    hold_all(session, Evaluation.id.in_(rows.evaluations))
    if not cancel:
        _require_over(session, name, rows.evaluations)
    _require_unused(session, run)
    raise_floors(session)
    deleted = _counted(session, name, rows)
    for statement in _statements(rows):
        session.execute(statement, execution_options={"synchronize_session": False})
    session.expunge_all()
    return deleted


class _Rows:
    """The ids of a run's rows, as queries."""

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self.checkpoints = select(Checkpoint.id).where(Checkpoint.run_id == run_id)
        self.evaluations = select(Evaluation.id).where(Evaluation.checkpoint_id.in_(self.checkpoints))
        self.tasks = select(Task.id).where(Task.evaluation_id.in_(self.evaluations))
        self.shards = select(Shard.id).where(Shard.task_id.in_(self.tasks))
        self.series = select(Series.id).where(Series.run_id == run_id)


def _counted(session: Session, name: str, rows: _Rows) -> Deleted:
    spooled = select(Checkpoint.id, Checkpoint.path).where(
        Checkpoint.id.in_(rows.checkpoints), Checkpoint.spool_state.is_not(None)
    )
    contents = select(Artifact.sha256).where(Artifact.task_id.in_(rows.tasks)).distinct()
    items = select(Task.items_sha256).where(Task.id.in_(rows.tasks), Task.items_sha256.is_not(None)).distinct()
    return Deleted(
        run=name,
        checkpoints=_count(session, rows.checkpoints),
        evaluations=_count(session, rows.evaluations),
        values=_count(session, select(MetricValue.step).where(MetricValue.series_id.in_(rows.series))),
        artifacts=_count(session, select(Artifact.id).where(Artifact.task_id.in_(rows.tasks))),
        spooled=[(row.id, row.path) for row in session.execute(spooled)],
        tasks=session.scalars(rows.tasks).all(),
        artifact_contents=session.scalars(contents).all(),
        item_contents=[sha256 for sha256 in session.scalars(items) if sha256 is not None],
    )


def _statements(rows: _Rows) -> Sequence[Delete]:
    """Return what removes the rows, those first that name others."""
    links = checkpoint_parents.c
    return (
        delete(Attempt).where(Attempt.shard_id.in_(rows.shards)),
        delete(Shard).where(Shard.task_id.in_(rows.tasks)),
        delete(Artifact).where(Artifact.task_id.in_(rows.tasks)),
        delete(MetricValue).where(MetricValue.series_id.in_(rows.series)),
        delete(Series).where(Series.run_id == rows.run_id),
        delete(Import).where(Import.run_id == rows.run_id),
        delete(Task).where(Task.evaluation_id.in_(rows.evaluations)),
        delete(Evaluation).where(Evaluation.checkpoint_id.in_(rows.checkpoints)),
        delete(checkpoint_parents).where(
            or_(links.checkpoint_id.in_(rows.checkpoints), links.parent_id.in_(rows.checkpoints))
        ),
        delete(Checkpoint).where(Checkpoint.run_id == rows.run_id),
        delete(Run).where(Run.id == rows.run_id),
    )


def _require_over(session: Session, name: str, evaluations: Select[int]) -> None:
    query = select(Evaluation.id).where(Evaluation.id.in_(evaluations), Evaluation.state.not_in(OVER))
    open_ids = session.scalars(query.order_by(Evaluation.id)).all()
    if open_ids:
        raise WrongState(
            f"run {name!r} has evaluations that are not over ({first_few(open_ids, NAMED)}); wait for them, or delete "
            "it with cancel=true (--cancel)"
        )


def _require_unused(session: Session, run: Run) -> None:
    """Raise Conflict where another run needs something of it."""
    named = session.execute(
        select(Run.name, Run.base).where(Run.base.is_not(None), Run.id != run.id).order_by(Run.name)
    )
    based = [name for name, base in named if base is not None and base["run"] == run.name]
    if based:
        raise Conflict(
            f"run {run.name!r} has the base of {first_few(based, NAMED)}; give that another one first: evalsvc base "
            f"{based[0]} STEP --of RUN, or delete it too"
        )
    parent, child = aliased(Checkpoint), aliased(Checkpoint)
    query = (
        select(child)
        .join(checkpoint_parents, checkpoint_parents.c.checkpoint_id == child.id)
        .join(parent, parent.id == checkpoint_parents.c.parent_id)
        .where(parent.run_id == run.id, child.run_id != run.id, child.replaced_at.is_(None))
        .distinct()
        .order_by(child.id)
    )
    children = [str(step_of(checkpoint)) for checkpoint in session.scalars(query)]
    if children:
        raise Conflict(
            f"virtual checkpoints of other runs are made of run {run.name!r}: {first_few(children, NAMED)}; delete "
            "their runs first"
        )


def _count(session: Session, ids: Select[int]) -> int:
    return session.scalar(select(func.count()).select_from(ids.subquery())) or 0
