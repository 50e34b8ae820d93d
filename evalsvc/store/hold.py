"""Whoever changes what belongs to an evaluation holds its row first, and reads then.

PostgreSQL would else have one cancel it and retry it between the reads and the writes of another. SQLite has one writer
at a time. Who holds several takes them in the order of their ids, so that no two wait for each other.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Evaluation


def hold(session: Session, evaluation_id: int) -> str | None:
    """The state of an evaluation, which nobody else changes until the transaction ends; None where it is gone."""
    return session.scalar(select(Evaluation.state).where(Evaluation.id == evaluation_id).with_for_update())


def hold_all(session: Session, which: ColumnElement[bool]) -> None:
    """Hold all evaluations of which a condition holds."""
    session.execute(select(Evaluation.id).where(which).order_by(Evaluation.id).with_for_update()).all()
