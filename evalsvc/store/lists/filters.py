"""Filters of lists. A filter by an unknown name is an error that lists near names, never an empty list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents.fields import State
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Checkpoint, Evaluation


@dataclass(frozen=True)
class Filters:
    """Conditions on the checkpoints, or on the evaluations, in a list. A field that is None is no condition."""

    run: str | None = None
    variant: str | None = None
    suite: str | None = None
    """The suite of the evaluations; for lists of evaluations only."""
    state: State | None = None
    """The state of the evaluations; for a list of checkpoints, the state of at least one evaluation of each."""
    first: int | None = None
    """The lowest step."""
    last: int | None = None
    """The highest step."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest if the range of steps is empty."""
        if self.first is not None and self.last is not None and self.first > self.last:
            raise InvalidRequest(f"from={self.first} is greater than to={self.last}; swap the two")

    def of_checkpoints(self, session: Session) -> Iterator[ColumnElement[bool]]:
        """Yield the conditions on a checkpoint's run, variant and step.

        Raises:
            UnknownName: there is no such run, or no checkpoint (of the run) has this variant.
        """
        if self.run is not None:
            yield Checkpoint.run_id == find_run(session, self.run).id
        if self.variant is not None:
            _require_variant(session, self.run, self.variant)
            yield Checkpoint.variant == self.variant
        if self.first is not None:
            yield Checkpoint.step >= self.first
        if self.last is not None:
            yield Checkpoint.step <= self.last


def _require_variant(session: Session, run: str | None, variant: str) -> None:
    posted = select(Checkpoint.variant)
    if run is not None:
        posted = posted.where(Checkpoint.run_id == find_run(session, run).id)
    if session.scalar(posted.where(Checkpoint.variant == variant).limit(1)) is None:
        kind = "variant" if run is None else f"variant of run {run!r}"
        raise UnknownName.among(kind, variant, session.scalars(posted.distinct()))


def require_suite(session: Session, suite: str, named: Iterable[str]) -> None:
    """Raise UnknownName unless the suite is in `named`, or has evaluated a checkpoint and was deleted since."""
    known = set(named)
    evaluated = select(Evaluation.suite).distinct()
    if suite not in known and session.scalar(evaluated.where(Evaluation.suite == suite).limit(1)) is None:
        raise UnknownName.among("suite", suite, known.union(session.scalars(evaluated)))
