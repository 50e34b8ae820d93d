"""No id is given twice, even after what had it was deleted.

SQLite gives a new row the largest id in its table plus one, so that deleting the newest rows would have their ids given
again: a late result would then be stored for a shard that is another one, and a client would find another evaluation
than it waits for. PostgreSQL's sequences do not go back.
"""

from __future__ import annotations

from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, IdFloor, Shard, Task

KEPT_APART = (Checkpoint, Evaluation, Task, Shard, Artifact)
"""Whose ids are known outside of the database: in addresses, in the names of files, by workers."""


def raise_floors(session: Session) -> None:
    """Call it before rows are deleted: new ones get ids beyond all that there are now."""
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
    """Before a flush: give ids to new rows where SQLite would give those of deleted ones."""
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
    """In which order rows were added to the session."""
    order: int = inspect(row).insert_order
    return order
