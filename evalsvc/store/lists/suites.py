"""The list of suites that were put."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.store.tables import Suite


def loaded_suites(session: Session, names: Collection[str]) -> Sequence[Suite]:
    """Load suites by one query. While the caller keeps the rows, reading one of the suites needs no query."""
    return session.scalars(select(Suite).where(Suite.name.in_(names))).all()
