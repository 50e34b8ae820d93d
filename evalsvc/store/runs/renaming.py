"""Rename a run everywhere: in its history, in expressions, and as a base."""

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
    """Rename the run `name` to `new`: in its history, in expressions, and where the run is the base of others.

    Raises:
        UnknownName: there is no such run.
        Conflict: there is a run of the new name.
    """
    run = find_run(session, name)
    if name == new:
        return run
    if session.scalar(select(Run.id).where(Run.name == new)) is not None:
        raise Conflict(f"there is a run {new!r} already; delete it first, or choose another name")
    made_of = _made_of(session, run)
    # Who stores a result of one writes to it first, and to its run then.
    hold_all(session, Evaluation.checkpoint_id.in_([checkpoint.id for checkpoint in made_of]))
    touch_history(session, run.id)
    run.name = new
    for other in session.scalars(select(Run).where(Run.base.is_not(None))):
        if other.base is not None and other.base["run"] == name:
            other.base = {**other.base, "run": new}
    for checkpoint in made_of:
        checkpoint.uri = checkpoint.path = _renamed(checkpoint.uri, name, new)
    return run


def _made_of(session: Session, run: Run) -> Sequence[Checkpoint]:
    """Return the virtual checkpoints, of any run, whose expressions name a run."""
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
        raise AssertionError(f"{text} was resolved when it was posted, and holds the range {steps}")

    return canonical(replaced(parse_expression(text), of_leaf, of_range))
