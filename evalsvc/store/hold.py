"""Row locks of evaluations: a transaction locks the row before it reads the data that it changes.

Without the lock, PostgreSQL would let one transaction cancel and retry an evaluation between the reads and the writes
of another. SQLite needs no row locks, because only one transaction writes at a time. Several rows are locked in the
order of their ids, to avoid deadlocks.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Evaluation


def hold(session: Session, evaluation_id: int) -> str | None:
    """Lock an evaluation until the transaction ends; return its state, or None if the evaluation was deleted."""
    return session.scalar(select(Evaluation.state).where(Evaluation.id == evaluation_id).with_for_update())


def hold_all(session: Session, which: ColumnElement[bool]) -> None:
    """Lock all evaluations that fulfil a condition."""
    session.execute(select(Evaluation.id).where(which).order_by(Evaluation.id).with_for_update()).all()
