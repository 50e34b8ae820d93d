"""Loading of stored suites for the list of suites."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Suite


def loaded_suites(session: Session, names: Collection[str]) -> Sequence[Suite]:
    """Load suites with one query. While the caller keeps the returned rows, reading a suite needs no further query."""
    return session.scalars(select(Suite).where(Suite.name.in_(names))).all()
