"""Find runs, checkpoints and evaluations by name or id, and lock the rows of evaluations.

The error for an unknown name lists near names. A transaction locks an evaluation's row before it reads the data that it
changes. Without the lock, PostgreSQL would let a transaction cancel and retry an evaluation between the reads and the
writes of another. SQLite needs no row locks, because only one transaction writes at a time. Several rows are locked in
the order of their ids, to avoid deadlocks.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.expression import Step
from evalsvc.errors import UnknownName, WrongState
from evalsvc.store.tables import Checkpoint, Evaluation, Run


def get_or_create_run(session: Session, name: str) -> Run:
    run = session.scalar(select(Run).where(Run.name == name))
    if run is None:
        run = Run(name=name)
        session.add(run)
        session.flush()
    return run


def find_run(session: Session, name: str) -> Run:
    run = session.scalar(select(Run).where(Run.name == name))
    if run is None:
        hint = "the first checkpoint that is posted creates a run"
        raise UnknownName.among("run", name, session.scalars(select(Run.name)), hint)
    return run


def find_checkpoint(session: Session, checkpoint_id: int) -> Checkpoint:
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        raise UnknownName(f"there is no checkpoint {checkpoint_id}; GET /v1/checkpoints lists the checkpoints")
    return checkpoint


def current_checkpoint(session: Session, run_id: int, step: int, variant: str) -> Checkpoint | None:
    return session.scalar(select(Checkpoint).filter_by(run_id=run_id, step=step, variant=variant, replaced_at=None))


def find_step(session: Session, run: Run, step: int, variant: str) -> Checkpoint:
    """Return a run's current checkpoint at a step; UnknownName lists the variants at the step, or the nearest steps."""
    checkpoint = current_checkpoint(session, run.id, step, variant)
    if checkpoint is not None:
        return checkpoint
    current = select(Checkpoint.step, Checkpoint.variant).filter_by(run_id=run.id, replaced_at=None)
    posted = session.execute(current).all()
    if variants := [row.variant for row in posted if row.step == step]:
        raise UnknownName.among(f"variant of run {run.name!r} at step {step}", variant, variants)
    steps = {row.step for row in posted if row.variant == variant} or {row.step for row in posted}
    nearest = sorted(sorted(steps, key=lambda other: abs(other - step))[:4])
    near = f"the nearest steps are {', '.join(map(str, nearest))}" if nearest else "the run has no checkpoint yet"
    raise UnknownName(f"run {run.name!r} has no checkpoint at step {step}, variant {variant!r}; {near}")


def find_evaluation(session: Session, evaluation_id: int) -> Evaluation:
    evaluation = session.get(Evaluation, evaluation_id)
    if evaluation is None:
        raise UnknownName(f"there is no evaluation {evaluation_id}; GET /v1/evaluations lists the evaluations")
    return evaluation


def hold(session: Session, evaluation_id: int) -> str | None:
    """Lock an evaluation until the transaction ends; return its state, or None if the evaluation was deleted."""
    return session.scalar(select(Evaluation.state).where(Evaluation.id == evaluation_id).with_for_update())


def hold_all(session: Session, which: ColumnElement[bool]) -> None:
    session.execute(select(Evaluation.id).where(which).order_by(Evaluation.id).with_for_update()).all()


def newest_evaluation(session: Session, checkpoint_id: int, suite_digest: str) -> Evaluation | None:
    evaluations = select(Evaluation).filter_by(checkpoint_id=checkpoint_id, suite_digest=suite_digest)
    return session.scalar(evaluations.order_by(Evaluation.id.desc()).limit(1))


def step_of(checkpoint: Checkpoint) -> Step:
    return Step(checkpoint.run.name, checkpoint.step, checkpoint.variant)


def place_of(checkpoint: Checkpoint) -> dict[str, object]:
    return {"run": checkpoint.run.name, "step": checkpoint.step, "variant": checkpoint.variant}


def checkpoint_label(checkpoint: Checkpoint) -> str:
    label = f"run {checkpoint.run.name!r} step {checkpoint.step}"
    return label if checkpoint.variant == "raw" else f"{label} variant {checkpoint.variant!r}"


def require_current_parents(checkpoint: Checkpoint) -> None:
    replaced = [str(step_of(parent)) for parent in checkpoint.parents if parent.replaced_at is not None]
    if replaced:
        raise WrongState(
            f"checkpoint {checkpoint.id} is computed from {', '.join(replaced)}, replaced by another file since; post "
            "the checkpoint's expression again with replace=true"
        )
