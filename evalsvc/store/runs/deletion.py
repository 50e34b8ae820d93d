"""Delete a run or a checkpoint with its evaluations and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Delete, Select, delete, func, or_, select
from sqlalchemy.orm import Session

from evalsvc.errors import Conflict, WrongState, first_few
from evalsvc.store.history.version import touch_history
from evalsvc.store.hold import hold_all
from evalsvc.store.ids import raise_floors
from evalsvc.store.lookup import find_checkpoint, find_run, step_of
from evalsvc.store.runs.base import runs_based_on
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
"""The most names that an error message lists."""


@dataclass(frozen=True)
class Deleted:
    """The numbers of deleted rows, and the files of the data folder that no other row may need."""

    run: str
    checkpoints: int
    evaluations: int
    values: int
    artifacts: int
    spooled: Sequence[tuple[int, str]]
    """Ids and paths of checkpoints that may have a spooled copy."""
    tasks: Sequence[int]
    """Ids of tasks that may have output files of shards."""
    artifact_contents: Sequence[str]
    """Digests of artifacts, which other rows may name too."""
    item_contents: Sequence[str]
    """Digests of files with results per item, which other rows may name too."""


def delete_run(session: Session, name: str, cancel: bool) -> Deleted:
    """Delete a run with its checkpoints, their evaluations and results, its history and its plan.

    The coordinator stops running attempts, whose results are discarded.

    Raises:
        UnknownName: there is no such run.
        WrongState: the run has unfinished evaluations, and `cancel` is not set.
        Conflict: another run has a checkpoint of this run as its base, or virtual checkpoints computed from this run.
    """
    run = find_run(session, name)
    rows = _Rows(Checkpoint.run_id == run.id)
    _hold(session, rows, f"run {name!r}", cancel)
    _require_no_base_of_others(session, run)
    _require_no_children(session, rows, f"run {name!r}")
    history = MetricValue.series_id.in_(select(Series.id).where(Series.run_id == run.id))
    deleted = _counted(session, name, rows, history)
    _execute(
        session,
        # Imported values have no evaluation.
        delete(MetricValue).where(history),
        delete(Series).where(Series.run_id == run.id),
        delete(Import).where(Import.run_id == run.id),
        *_statements(rows),
        delete(Run).where(Run.id == run.id),
    )
    return deleted


def delete_checkpoint(session: Session, checkpoint_id: int, cancel: bool) -> Deleted:
    """Delete a checkpoint with its evaluations, their results, and their values in the history.

    Imported values at the checkpoint's step stay, and the run stays. The coordinator stops running attempts, whose
    results are discarded.

    Raises:
        UnknownName: there is no such checkpoint.
        WrongState: the checkpoint has unfinished evaluations, and `cancel` is not set.
        Conflict: the checkpoint is the base of a run, or virtual checkpoints are computed from the checkpoint.
    """
    checkpoint = find_checkpoint(session, checkpoint_id)
    name = f"checkpoint {checkpoint_id} ({step_of(checkpoint)})"
    rows = _Rows(Checkpoint.id == checkpoint_id)
    _hold(session, rows, name, cancel)
    if runs := runs_based_on(session, checkpoint):
        raise Conflict(
            f"{name} is the base of {first_few(runs, NAMED)}; name another base first "
            f"(PUT /v1/runs/{runs[0]}/base), or delete the run"
        )
    _require_no_children(session, rows, name)
    touch_history(session, checkpoint.run_id)
    measured = MetricValue.evaluation_id.in_(rows.evaluations)
    series = session.scalars(select(MetricValue.series_id).where(measured).distinct()).all()
    deleted = _counted(session, checkpoint.run.name, rows, measured)
    has_values = select(MetricValue.step).where(MetricValue.series_id == Series.id).exists()
    _execute(session, *_statements(rows), delete(Series).where(Series.id.in_(series), ~has_values))
    return deleted


class _Rows:
    """Queries of the ids of checkpoints and of all rows that belong to the checkpoints."""

    def __init__(self, which: ColumnElement[bool]) -> None:
        """Take the condition on the checkpoints."""
        self.checkpoints = select(Checkpoint.id).where(which)
        self.evaluations = select(Evaluation.id).where(Evaluation.checkpoint_id.in_(self.checkpoints))
        self.tasks = select(Task.id).where(Task.evaluation_id.in_(self.evaluations))
        self.shards = select(Shard.id).where(Shard.task_id.in_(self.tasks))


def _hold(session: Session, rows: _Rows, name: str, cancel: bool) -> None:
    """Lock the evaluations, so that no result is stored.

    Raises:
        WrongState: an evaluation is unfinished, and `cancel` is not set.
    """
    hold_all(session, Evaluation.id.in_(rows.evaluations))
    if cancel:
        return
    query = select(Evaluation.id).where(Evaluation.id.in_(rows.evaluations), Evaluation.state.not_in(OVER))
    open_ids = session.scalars(query.order_by(Evaluation.id)).all()
    if open_ids:
        raise WrongState(
            f"{name} has unfinished evaluations ({first_few(open_ids, NAMED)}); wait until they end, or delete with "
            "cancel=true (--cancel)"
        )


def _counted(session: Session, run: str, rows: _Rows, values: ColumnElement[bool]) -> Deleted:
    spooled = select(Checkpoint.id, Checkpoint.path).where(
        Checkpoint.id.in_(rows.checkpoints), Checkpoint.spool_state.is_not(None)
    )
    contents = select(Artifact.sha256).where(Artifact.task_id.in_(rows.tasks)).distinct()
    items = select(Task.items_sha256).where(Task.id.in_(rows.tasks), Task.items_sha256.is_not(None)).distinct()
    return Deleted(
        run=run,
        checkpoints=_count(session, rows.checkpoints),
        evaluations=_count(session, rows.evaluations),
        values=_count(session, select(MetricValue.step).where(values)),
        artifacts=_count(session, select(Artifact.id).where(Artifact.task_id.in_(rows.tasks))),
        spooled=[(row.id, row.path) for row in session.execute(spooled)],
        tasks=session.scalars(rows.tasks).all(),
        artifact_contents=session.scalars(contents).all(),
        item_contents=[sha256 for sha256 in session.scalars(items) if sha256 is not None],
    )


def _statements(rows: _Rows) -> Sequence[Delete]:
    """Return the statements that delete the rows, in the order of foreign keys."""
    links = checkpoint_parents.c
    return (
        delete(Attempt).where(Attempt.shard_id.in_(rows.shards)),
        delete(Shard).where(Shard.task_id.in_(rows.tasks)),
        delete(Artifact).where(Artifact.task_id.in_(rows.tasks)),
        delete(MetricValue).where(MetricValue.evaluation_id.in_(rows.evaluations)),
        delete(Task).where(Task.evaluation_id.in_(rows.evaluations)),
        delete(Evaluation).where(Evaluation.checkpoint_id.in_(rows.checkpoints)),
        delete(checkpoint_parents).where(
            or_(links.checkpoint_id.in_(rows.checkpoints), links.parent_id.in_(rows.checkpoints))
        ),
        delete(Checkpoint).where(Checkpoint.id.in_(rows.checkpoints)),
    )


def _execute(session: Session, *statements: Delete) -> None:
    """Execute statements that delete rows, and keep new rows from reusing the ids."""
    raise_floors(session)
    for statement in statements:
        session.execute(statement, execution_options={"synchronize_session": False})
    session.expunge_all()


def _require_no_base_of_others(session: Session, run: Run) -> None:
    """Raise Conflict if another run names a checkpoint of this run as its base."""
    named = session.execute(
        select(Run.name, Run.base).where(Run.base.is_not(None), Run.id != run.id).order_by(Run.name)
    )
    based = [name for name, base in named if base is not None and base["run"] == run.name]
    if based:
        raise Conflict(
            f"a checkpoint of run {run.name!r} is the base of {first_few(based, NAMED)}; name another base first "
            f"(PUT /v1/runs/{based[0]}/base), or delete the other run too"
        )


def _require_no_children(session: Session, rows: _Rows, name: str) -> None:
    """Raise Conflict if remaining virtual checkpoints are computed from checkpoints that are to be deleted."""
    links = checkpoint_parents.c
    query = (
        select(Checkpoint)
        .where(
            Checkpoint.id.in_(select(links.checkpoint_id).where(links.parent_id.in_(rows.checkpoints))),
            Checkpoint.id.not_in(rows.checkpoints),
            Checkpoint.replaced_at.is_(None),
        )
        .order_by(Checkpoint.id)
    )
    children = [str(step_of(checkpoint)) for checkpoint in session.scalars(query)]
    if children:
        raise Conflict(f"virtual checkpoints are computed from {name}; delete them first: {first_few(children, NAMED)}")


def _count(session: Session, ids: Select[int]) -> int:
    return session.scalar(select(func.count()).select_from(ids.subquery())) or 0
