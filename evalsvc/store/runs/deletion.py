"""Rename runs, and delete runs and checkpoints. Foreign keys delete the rows that belong to a deleted row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Delete, Select, delete, func, select
from sqlalchemy.orm import Session, aliased

from evalsvc.checkpoints.expression import Expression, Leaf, Step, Steps, canonical, parse_expression, replaced
from evalsvc.errors import Conflict, WrongState, first_few
from evalsvc.store.history.writing import touch_history
from evalsvc.store.lookup import find_checkpoint, find_run, hold_all, step_of
from evalsvc.store.runs.base import runs_based_on
from evalsvc.store.tables import (
    OVER,
    Artifact,
    Checkpoint,
    Evaluation,
    MetricValue,
    Run,
    Series,
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
    item_contents: Sequence[str]
    """Digests of artifacts, and of files with results per item, which other rows may name too."""


def delete_run(session: Session, name: str, cancel: bool) -> Deleted:
    """Delete a run with its checkpoints, their results, its history and its plan; results of running attempts are lost.
    Refuse unfinished evaluations, unless `cancel` is set, and while other runs need its checkpoints."""
    run = find_run(session, name)
    checkpoints = select(Checkpoint.id).where(Checkpoint.run_id == run.id)
    _hold(session, checkpoints, f"run {name!r}", cancel)
    has_base = select(Run.name, Run.base).where(Run.base.is_not(None), Run.id != run.id)
    named = session.execute(has_base.order_by(Run.name))
    if based := [other for other, base in named if base is not None and base["run"] == name]:
        raise Conflict(
            f"a checkpoint of run {name!r} is the base of {first_few(based, NAMED)}; name another base first "
            f"(PUT /v1/runs/{based[0]}/base), or delete the other run too"
        )
    _require_no_children(session, checkpoints, f"run {name!r}")
    history = MetricValue.series_id.in_(select(Series.id).where(Series.run_id == run.id))
    # A statement for all values is faster than a cascade for each series and evaluation.
    statements = delete(MetricValue).where(history), delete(Run).where(Run.id == run.id)
    return _delete(session, name, checkpoints, history, statements)


def delete_checkpoint(session: Session, checkpoint_id: int, cancel: bool) -> Deleted:
    """Delete a checkpoint with its evaluations, their results, and their values in the history; see `delete_run`.
    Imported values at the step stay. A base, or a parent of virtual checkpoints, is not deleted."""
    checkpoint = find_checkpoint(session, checkpoint_id)
    name = f"checkpoint {checkpoint_id} ({step_of(checkpoint)})"
    checkpoints = select(Checkpoint.id).where(Checkpoint.id == checkpoint_id)
    _hold(session, checkpoints, name, cancel)
    if runs := runs_based_on(session, checkpoint):
        raise Conflict(
            f"{name} is the base of {first_few(runs, NAMED)}; name another base first "
            f"(PUT /v1/runs/{runs[0]}/base), or delete the run"
        )
    _require_no_children(session, checkpoints, name)
    touch_history(session, checkpoint.run_id)
    measured = MetricValue.evaluation_id.in_(select(Evaluation.id).where(Evaluation.checkpoint_id == checkpoint_id))
    series = session.scalars(select(MetricValue.series_id).where(measured).distinct()).all()
    has_values = select(MetricValue.step).where(MetricValue.series_id == Series.id).exists()
    unused = delete(Series).where(Series.id.in_(series), ~has_values)
    statements = delete(Checkpoint).where(Checkpoint.id == checkpoint_id), unused
    return _delete(session, checkpoint.run.name, checkpoints, measured, statements)


def _hold(session: Session, checkpoints: Select[int], name: str, cancel: bool) -> None:
    """Lock the evaluations, so that no result is stored. Refuse unfinished evaluations unless `cancel` is set."""
    hold_all(session, Evaluation.checkpoint_id.in_(checkpoints))
    query = select(Evaluation.id).where(Evaluation.checkpoint_id.in_(checkpoints), Evaluation.state.not_in(OVER))
    if not cancel and (open_ids := session.scalars(query.order_by(Evaluation.id)).all()):
        raise WrongState(
            f"{name} has unfinished evaluations ({first_few(open_ids, NAMED)}); wait until they end, or delete with "
            "cancel=true (--cancel)"
        )


def _require_no_children(session: Session, checkpoints: Select[int], name: str) -> None:
    links = checkpoint_parents.c
    of_parents = Checkpoint.id.in_(select(links.checkpoint_id).where(links.parent_id.in_(checkpoints)))
    others = Checkpoint.id.not_in(checkpoints), Checkpoint.replaced_at.is_(None)
    query = select(Checkpoint).where(of_parents, *others).order_by(Checkpoint.id)
    children = [str(step_of(checkpoint)) for checkpoint in session.scalars(query)]
    if children:
        raise Conflict(f"virtual checkpoints are computed from {name}; delete them first: {first_few(children, NAMED)}")


def _delete(
    session: Session, run: str, checkpoints: Select[int], values: ColumnElement[bool], statements: Iterable[Delete]
) -> Deleted:
    evaluations = select(Evaluation.id).where(Evaluation.checkpoint_id.in_(checkpoints))
    tasks = session.execute(select(Task.id, Task.items_sha256).where(Task.evaluation_id.in_(evaluations))).all()
    of_tasks = Artifact.task_id.in_(select(Task.id).where(Task.evaluation_id.in_(evaluations)))
    artifacts = session.scalars(select(Artifact.sha256).where(of_tasks)).all()
    has_copy = Checkpoint.id.in_(checkpoints), Checkpoint.spool_state.is_not(None)
    spooled = session.execute(select(Checkpoint.id, Checkpoint.path).where(*has_copy))
    queries = {"checkpoints": checkpoints, "evaluations": evaluations, "values": select(MetricValue.step).where(values)}
    counts = {name: select(func.count()).select_from(rows.subquery()) for name, rows in queries.items()}
    deleted = Deleted(
        run=run,
        **{name: session.scalar(count) or 0 for name, count in counts.items()},
        artifacts=len(artifacts),
        spooled=[(row.id, row.path) for row in spooled],
        tasks=[task.id for task in tasks],
        artifact_contents=sorted(set(artifacts)),
        item_contents=sorted({task.items_sha256 for task in tasks if task.items_sha256 is not None}),
    )
    for statement in statements:
        session.execute(statement, execution_options={"synchronize_session": False})
    session.expunge_all()
    return deleted


def rename_run(session: Session, name: str, new: str) -> Run:
    """Rename the run `name` to `new`, also in expressions of virtual checkpoints and in the bases of other runs."""
    run = find_run(session, name)
    if name == new:
        return run
    if session.scalar(select(Run.id).where(Run.name == new)) is not None:
        raise Conflict(f"a run {new!r} exists; delete that run first, or choose another name")
    parent = aliased(Checkpoint)
    links = checkpoint_parents.c
    of_run = select(links.checkpoint_id).join(parent, parent.id == links.parent_id).where(parent.run_id == run.id)
    children = session.scalars(select(Checkpoint).where(Checkpoint.id.in_(of_run))).all()
    # Lock in the same order as the transaction that stores a result: evaluations first, then the run.
    hold_all(session, Evaluation.checkpoint_id.in_([checkpoint.id for checkpoint in children]))
    touch_history(session, run.id)
    run.name = new
    for other in session.scalars(select(Run).where(Run.base.is_not(None))):
        if other.base is not None and other.base["run"] == name:
            other.base = {**other.base, "run": new}
    for checkpoint in children:
        checkpoint.uri = _renamed(checkpoint.uri, name, new)
        if checkpoint.is_virtual:
            checkpoint.path = checkpoint.uri
    return run


def _renamed(text: str, name: str, new: str) -> str:
    def of_leaf(leaf: Leaf) -> Expression:
        return replace(leaf, run=new) if isinstance(leaf, Step) and leaf.run == name else leaf

    def of_range(steps: Steps) -> Sequence[Expression]:
        raise AssertionError(f"the stored expression {text} has the range {steps}, although posts resolve ranges")

    return canonical(replaced(parse_expression(text), of_leaf, of_range))
