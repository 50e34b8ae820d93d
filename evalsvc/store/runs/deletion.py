"""Deleting a run, with all that came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, or_, select
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

    def to_json(self) -> dict[str, Any]:
        names = ("run", "checkpoints", "evaluations", "values", "artifacts")
        return {name: getattr(self, name) for name in names}


def delete_run(session: Session, name: str, cancel: bool) -> Deleted:
    """Delete a run: its checkpoints, their evaluations with all results, its history and its plan.

    An attempt that runs is told to stop by the coordinator, and its result is late.

    Raises:
        UnknownName: there is no such run.
        WrongState: evaluations of it are not over, and `cancel` is not set.
        Conflict: another run has it as its base, or has virtual checkpoints that are made of its checkpoints.
    """
    run = find_run(session, name)
    checkpoints = select(Checkpoint.id).where(Checkpoint.run_id == run.id)
    evaluations = select(Evaluation.id).where(Evaluation.checkpoint_id.in_(checkpoints))
    tasks = select(Task.id).where(Task.evaluation_id.in_(evaluations))
    shards = select(Shard.id).where(Shard.task_id.in_(tasks))
    # From here on nobody stores a result for this run.
    hold_all(session, Evaluation.id.in_(evaluations))
    if not cancel:
        _require_over(session, name, evaluations)
    _require_unused(session, run)
    raise_floors(session)
    return _delete(session, run, checkpoints, evaluations, tasks, shards)


def _delete(
    session: Session,
    run: Run,
    checkpoints: Select[int],
    evaluations: Select[int],
    tasks: Select[int],
    shards: Select[int],
) -> Deleted:
    series = select(Series.id).where(Series.run_id == run.id)
    contents = select(Artifact.sha256).where(Artifact.task_id.in_(tasks)).distinct()
    items = select(Task.items_sha256).where(Task.id.in_(tasks), Task.items_sha256.is_not(None)).distinct()
    found = Deleted(
        run=run.name,
        checkpoints=_count(session, checkpoints),
        evaluations=_count(session, evaluations),
        values=session.scalar(select(func.count()).where(MetricValue.series_id.in_(series))) or 0,
        artifacts=session.scalar(select(func.count()).where(Artifact.task_id.in_(tasks))) or 0,
        spooled=[
            (row.id, row.path)
            for row in session.execute(
                select(Checkpoint.id, Checkpoint.path).where(
                    Checkpoint.id.in_(checkpoints), Checkpoint.spool_state.is_not(None)
                )
            )
        ],
        tasks=session.scalars(tasks).all(),
        artifact_contents=session.scalars(contents).all(),
        item_contents=[sha256 for sha256 in session.scalars(items) if sha256 is not None],
    )
    links = or_(checkpoint_parents.c.checkpoint_id.in_(checkpoints), checkpoint_parents.c.parent_id.in_(checkpoints))
    for statement in (
        delete(Attempt).where(Attempt.shard_id.in_(shards)),
        delete(Shard).where(Shard.task_id.in_(tasks)),
        delete(Artifact).where(Artifact.task_id.in_(tasks)),
        delete(MetricValue).where(MetricValue.series_id.in_(series)),
        delete(Series).where(Series.run_id == run.id),
        delete(Import).where(Import.run_id == run.id),
        delete(Task).where(Task.evaluation_id.in_(evaluations)),
        delete(Evaluation).where(Evaluation.checkpoint_id.in_(checkpoints)),
        delete(checkpoint_parents).where(links),
        delete(Checkpoint).where(Checkpoint.run_id == run.id),
        delete(Run).where(Run.id == run.id),
    ):
        session.execute(statement, execution_options={"synchronize_session": False})
    session.expunge_all()
    return found


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
