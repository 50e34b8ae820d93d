"""Query parameters of lists: the page and the filters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evalsvc.api.schemas import MAX_ENTRIES, Input
from evalsvc.spec.documents.fields import State
from evalsvc.spec.names import MAX_STEP
from evalsvc.store.pages import DEFAULT_LIMIT, MAX_LIMIT, Filters, PageRequest


class PageQuery(Input):
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    """The most rows on the page."""
    cursor: str | None = None
    """`next_cursor` of the page before, from a request with the same filters. By default, the first page."""

    def page(self) -> PageRequest:
        return PageRequest(self.limit, self.cursor)


class CheckpointsQuery(PageQuery):
    run: str | None = None
    """Only this run's checkpoints."""
    variant: str | None = None
    """Only checkpoints of this variant of the weights."""
    state: State | None = None
    """Only checkpoints with an evaluation in this state."""
    first: Annotated[int | None, Field(alias="from", ge=0, le=MAX_STEP)] = None
    """The lowest step."""
    last: Annotated[int | None, Field(alias="to", ge=0, le=MAX_STEP)] = None
    """The highest step."""

    def filters(self) -> Filters:
        return Filters(self.run, self.variant, None, self.state, self.first, self.last)


class EvaluationsQuery(PageQuery):
    run: str | None = None
    """Only evaluations of this run's checkpoints."""
    suite: str | None = None
    """Only evaluations by this suite."""
    state: State | None = None
    """Only evaluations in this state."""
    first: Annotated[int | None, Field(alias="from", ge=0, le=MAX_STEP)] = None
    """The lowest step of the checkpoints."""
    last: Annotated[int | None, Field(alias="to", ge=0, le=MAX_STEP)] = None
    """The highest step of the checkpoints."""

    def filters(self) -> Filters:
        return Filters(self.run, None, self.suite, self.state, self.first, self.last)


class ArtifactsQuery(PageQuery):
    kind: str | None = None
    """Only artifacts of this kind, such as `grid`."""


class RunArtifactsQuery(ArtifactsQuery):
    step: Annotated[int | None, Field(ge=0, le=MAX_STEP)] = None
    """Only artifacts of the checkpoints at this step."""


class ProtocolsQuery(PageQuery):
    run: str | None = None
    """Only protocols by which this run has values."""
    metric: Annotated[list[str], Field(default_factory=list, max_length=MAX_ENTRIES)]
    """Only protocols of a metric, or of a pattern such as `arc_*/acc`; repeat for several metrics."""
