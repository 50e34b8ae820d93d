"""Suites in the database, which clients stored with `PUT /v1/suites/{name}`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import Conflict, first_few
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.store.tables import Evaluation, Run
from evalsvc.store.tables import Suite as SuiteRow


def put_suite(session: Session, suite: Suite) -> bool:
    """Store a suite under its name; return whether the name is new. Existing evaluations keep their own suite."""
    row = session.get(SuiteRow, suite.name)
    if row is None:
        session.add(SuiteRow(name=suite.name, content=suite.to_json(), digest=suite.digest))
        return True
    if row.content != suite.to_json():
        row.content, row.digest = suite.to_json(), suite.digest
    return False


def kept_suites(session: Session) -> Sequence[str]:
    return session.scalars(select(SuiteRow.name)).all()


def loaded_suites(session: Session, names: Collection[str]) -> Sequence[SuiteRow]:
    """Load suites with one query. While the caller keeps the returned rows, reading a suite needs no further query."""
    return session.scalars(select(SuiteRow).where(SuiteRow.name.in_(names))).all()


def kept_suite(session: Session, name: str) -> Mapping[str, object]:
    """Return the content of a stored suite, which may name a task that is no longer installed."""
    return session.get_one(SuiteRow, name).content


def delete_suite(session: Session, name: str) -> str:
    """Delete a stored suite; return its digest. Existing evaluations keep their own suite."""
    plans = session.execute(select(Run.name, Run.plan).where(Run.plan.is_not(None)).order_by(Run.name))
    runs = [run for run, plan in plans if plan and any(entry["suite"] == name for entry in plan["suites"])]
    if runs:
        raise Conflict(
            f"suite {name!r} is in the plans of {first_few(runs, 5)}; remove the suite from each plan first: "
            f"PUT /v1/runs/{runs[0]}/plan"
        )
    session.delete(row := session.get_one(SuiteRow, name))
    return row.digest


def evaluated_suite(evaluation: Evaluation) -> Suite:
    """Return the suite that an evaluation began with, without its description, which changes no result."""
    specs = (TaskSpec(task.kind, task.name, task.parameters) for task in evaluation.tasks)
    return Suite(evaluation.suite, "", tuple(specs))
