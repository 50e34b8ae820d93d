"""Suites that were put by REST, each under its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.spec.suite import Suite
from evalsvc.store.tables import Suite as SuiteRow


def put_suite(session: Session, suite: Suite) -> bool:
    """Keep a suite under its name; True where the name is new. Evaluations keep the suite that they began with."""
    row = session.get(SuiteRow, suite.name)
    if row is None:
        session.add(SuiteRow(name=suite.name, content=suite.to_json(), digest=suite.digest))
        return True
    if row.content != suite.to_json():
        row.content, row.digest = suite.to_json(), suite.digest
    return False


def kept_suites(session: Session) -> Sequence[str]:
    """The names of the suites that were put."""
    return session.scalars(select(SuiteRow.name)).all()


def kept_suite(session: Session, name: str) -> Mapping[str, object]:
    """The content of a suite that was put, which may name a task that is no longer installed."""
    return session.get_one(SuiteRow, name).content
