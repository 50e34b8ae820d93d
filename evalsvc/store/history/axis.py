"""The x axis of a history: the training step, or the number of tokens that the checkpoints have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, func, select
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.history import Axis
from evalsvc.store.history.series import Chosen
from evalsvc.store.tables import Checkpoint, MetricValue, Series

Columns = TypeVarTuple("Columns")


@dataclass(frozen=True)
class Window:
    """A range of the x axis, both ends included."""

    x: Axis = "step"
    first: int | None = None
    """The lowest x; None for no bound."""
    last: int | None = None
    """The highest x; None for no bound."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest if `first` is greater than `last`."""
        if self.first is not None and self.last is not None and self.first > self.last:
            raise InvalidRequest(f"from={self.first} is greater than to={self.last}; swap the two")

    @property
    def column(self) -> SQLColumnExpression[int | None]:
        """The column with the x of a value."""
        return MetricValue.step if self.x == "step" else Checkpoint.tokens_seen

    def narrow(self, query: Select[*Columns], series: Sequence[int]) -> Select[*Columns]:
        """Limit a query of values to the window and to series with these ids. Values without an x are left out."""
        chosen = MetricValue.series_id.in_(series) if len(series) != 1 else MetricValue.series_id == series[0]
        query = query.select_from(MetricValue).where(chosen)
        if self.x == "tokens":
            query = query.join(Series, Series.id == MetricValue.series_id).join(Checkpoint, _is_of_value())
            query = query.where(Checkpoint.tokens_seen.is_not(None))
        if self.first is not None:
            query = query.where(self.column >= self.first)
        if self.last is not None:
            query = query.where(self.column <= self.last)
        return query

    def require_tokens(self, session: Session, chosen: Chosen) -> None:
        """Raise InvalidRequest if x is tokens and no checkpoint of the run was posted with `tokens_seen`."""
        run = chosen.run
        if self.x == "step" or not chosen.heads:
            return
        posted = select(Checkpoint.id).where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        if session.scalar(posted.where(Checkpoint.tokens_seen.is_not(None)).limit(1)) is None:
            raise InvalidRequest(
                f"no checkpoint of run {run.name!r} was posted with tokens_seen; read the history with x=step"
            )

    def count_omitted(self, session: Session, series: Sequence[int]) -> Mapping[int, int]:
        """Return the number of values without an x by series, whatever the window."""
        if self.x == "step":
            return {}
        with_x = func.count(Checkpoint.tokens_seen)
        rows = session.execute(
            select(MetricValue.series_id, (func.count() - with_x).label("omitted"))
            .join(Series, Series.id == MetricValue.series_id)
            .outerjoin(Checkpoint, _is_of_value())
            .where(MetricValue.series_id.in_(series))
            .group_by(MetricValue.series_id)
        )
        return {row.series_id: row.omitted for row in rows}


WHOLE = Window()


def _is_of_value() -> ColumnElement[bool]:
    """Return the condition that joins a value with the current checkpoint of its run, variant and step."""
    return and_(
        Checkpoint.run_id == Series.run_id,
        Checkpoint.variant == Series.variant,
        Checkpoint.step == MetricValue.step,
        Checkpoint.replaced_at.is_(None),
    )
