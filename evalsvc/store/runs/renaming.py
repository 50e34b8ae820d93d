"""Rename a run, with the expressions and bases that name the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from evalsvc.checkpoints.expression import Expression, Leaf, Step, Steps, canonical, replaced
from evalsvc.checkpoints.expression_parser import parse_expression
from evalsvc.errors import Conflict
from evalsvc.store.history.version import touch_history
from evalsvc.store.hold import hold_all
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Checkpoint, Evaluation, Run, checkpoint_parents


def rename_run(session: Session, name: str, new: str) -> Run:
    """Rename the run `name` to `new`, also in expressions of virtual checkpoints and in the bases of other runs.

    Raises:
        UnknownName: there is no run `name`.
        Conflict: a run has the new name.
    """
    run = find_run(session, name)
    if name == new:
        return run
    if session.scalar(select(Run.id).where(Run.name == new)) is not None:
        raise Conflict(f"a run {new!r} exists; delete that run first, or choose another name")
    children = _children_of(session, run)
    # Lock in the same order as the transaction that stores a result: evaluations first, then the run.
    hold_all(session, Evaluation.checkpoint_id.in_([checkpoint.id for checkpoint in children]))
    touch_history(session, run.id)
    run.name = new
    for other in session.scalars(select(Run).where(Run.base.is_not(None))):
        if other.base is not None and other.base["run"] == name:
            other.base = {**other.base, "run": new}
    for checkpoint in children:
        checkpoint.uri = checkpoint.path = _renamed(checkpoint.uri, name, new)
    return run


def _children_of(session: Session, run: Run) -> Sequence[Checkpoint]:
    """Return the virtual checkpoints, of any run, whose expressions name the run."""
    parent = aliased(Checkpoint)
    children = (
        select(checkpoint_parents.c.checkpoint_id)
        .join(parent, parent.id == checkpoint_parents.c.parent_id)
        .where(parent.run_id == run.id)
    )
    return session.scalars(select(Checkpoint).where(Checkpoint.id.in_(children))).all()


def _renamed(text: str, name: str, new: str) -> str:
    def of_leaf(leaf: Leaf) -> Expression:
        return replace(leaf, run=new) if isinstance(leaf, Step) and leaf.run == name else leaf

    def of_range(steps: Steps) -> Sequence[Expression]:
        raise AssertionError(f"the stored expression {text} has the range {steps}, although posts resolve ranges")

    return canonical(replaced(parse_expression(text), of_leaf, of_range))
