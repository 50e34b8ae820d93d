"""Filters of lists. A filter by a name that does not exist is an error with near misses, never an empty list."""

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
    """Which checkpoints, or which evaluations of checkpoints, are listed; a field that is None keeps all."""

    run: str | None = None
    variant: str | None = None
    suite: str | None = None
    """For evaluations alone."""
    state: State | None = None
    """State of an evaluation; for checkpoints, of at least one of theirs."""
    first: int | None = None
    """The lowest step."""
    last: int | None = None
    """The highest step."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest if the range of steps is empty."""
        if self.first is not None and self.last is not None and self.first > self.last:
            raise InvalidRequest(f"from={self.first} is greater than to={self.last}; swap them")

    def of_checkpoints(self, session: Session) -> Iterator[ColumnElement[bool]]:
        """Yield the conditions on a checkpoint's run, variant and step.

        Raises:
            UnknownName: no such run; no checkpoint (of the run) has such a variant.
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
        what = "variant" if run is None else f"variant of run {run!r}"
        raise UnknownName.among(what, variant, session.scalars(posted.distinct()))


def require_suite(session: Session, suite: str, named: Iterable[str]) -> None:
    """Raise UnknownName unless the suite is one of `named`, or evaluated a checkpoint before it was deleted."""
    known = set(named)
    evaluated = select(Evaluation.suite).distinct()
    if suite not in known and session.scalar(evaluated.where(Evaluation.suite == suite).limit(1)) is None:
        raise UnknownName.among("suite", suite, known.union(session.scalars(evaluated)))
