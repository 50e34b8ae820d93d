"""Ids that are never reused, even after their rows were deleted.

SQLite gives a new row the largest id of its table plus one. After the newest rows were deleted, SQLite would reuse
their ids: a late result would be stored for another shard, and a client would get another evaluation. PostgreSQL's
sequences only grow.
"""

from __future__ import annotations

from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, IdFloor, Shard, Task

KEPT_APART = (Checkpoint, Evaluation, Task, Shard, Artifact)
"""Tables whose ids are used outside of the database: in URLs, in names of files, and on workers."""


def raise_floors(session: Session) -> None:
    """Record the largest ids. Call this function before you delete rows, so that new rows get larger ids."""
    if session.get_bind().dialect.name != "sqlite":
        return
    for kind in KEPT_APART:
        largest = session.scalar(select(func.max(kind.id))) or 0
        floor = session.get(IdFloor, kind.__tablename__)
        if floor is None:
            session.add(IdFloor(name=kind.__tablename__, value=largest))
        else:
            floor.value = max(floor.value, largest)
    session.flush()


def start_beyond_floors(session: Session, _context: object, _instances: object) -> None:
    """Set the ids of new rows before a flush, where SQLite would reuse ids of deleted rows."""
    new = [item for item in session.new if isinstance(item, KEPT_APART) and item.id is None]
    if not new or session.get_bind().dialect.name != "sqlite":
        return
    with session.no_autoflush:
        floors = {row.name: row.value for row in session.execute(select(IdFloor.name, IdFloor.value))}
        for kind in KEPT_APART:
            rows = [item for item in new if isinstance(item, kind)]
            floor = floors.get(kind.__tablename__, 0)
            if rows and floor and floor > (session.scalar(select(func.max(kind.id))) or 0):
                for number, row in enumerate(sorted(rows, key=_order), floor + 1):
                    row.id = number


def _order(row: object) -> int:
    """Return the position of a row among the rows added to the session."""
    order: int = inspect(row).insert_order
    return order
