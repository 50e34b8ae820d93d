"""Row locks of evaluations: lock the row before reading what the transaction changes.

Without the lock, PostgreSQL would let one transaction cancel and retry an evaluation between the reads and the writes
of another. SQLite has one writer at a time. Several rows are locked in the order of their ids, to avoid deadlocks.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Evaluation


def hold(session: Session, evaluation_id: int) -> str | None:
    """Lock an evaluation until the transaction ends, and return its state; None if the evaluation is gone."""
    return session.scalar(select(Evaluation.state).where(Evaluation.id == evaluation_id).with_for_update())


def hold_all(session: Session, which: ColumnElement[bool]) -> None:
    """Lock all evaluations that fulfil a condition."""
    session.execute(select(Evaluation.id).where(which).order_by(Evaluation.id).with_for_update()).all()
