"""The history of a run, which is what the service exists for: read whole, in pages or in buckets, and imported."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc import __version__
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document, rendered
from evalsvc.api.middleware.conditional import caching_headers, not_modified
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import HistoryQuery, Name, SummaryQuery
from evalsvc.api.state import CurrentState
from evalsvc.spec.documents.history import Buckets, History, Summary
from evalsvc.store.history.axis import Window
from evalsvc.store.history.buckets import read_buckets
from evalsvc.store.history.gaps import gaps_mark
from evalsvc.store.history.reading import read_history
from evalsvc.store.history.summary import read_summary
from evalsvc.store.history.version import history_tag
from evalsvc.store.lookup import find_run

router = router_of(prefix="/v1", tags=["history"], responses=PROBLEMS)

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is what `If-None-Match` says that you have: the `ETag` of an earlier answer."}
}


@router.get(
    "/runs/{run}/metrics",
    summary="A run's history: values of metrics along training steps or tokens",
    description="One series per metric, variant and protocol: values in one series are comparable. `differs` has the "
    "fields that tell several protocols of a metric apart. NaN and infinities are strings. `omitted` counts values "
    "without a place on the axis. Values that were imported have in `import` the id of their import.\n\n"
    "With `points`, the x from `from` to `to`, by default those of the first and the last value, are cut into at most "
    "so many ranges of `width` = ⌈range / points⌉, the same for all series, and a series has a bucket for each that "
    "has values: `x` of the last of them, `last` itself, `min`, `max` and `mean` of the finite ones, the `count` of "
    "all, and how many are `nan`, `positive_infinity`, `negative_infinity` and `imported`.\n\n"
    "With `limit`, a page: give `next_cursor` as `cursor` of the next request. Values that are written meanwhile move "
    "nothing from one page to another.\n\n"
    "`gaps` says why a step has no values that other steps have: the evaluation `failed`, was `skipped` by the run's "
    "plan, was `cancelled`, or is `pending`. At most 500 gaps are listed, those of the highest steps; `more_gaps` says "
    "whether there are others.",
    response_model=None,
    responses=document(200, "Columns ordered by x.", History, Buckets) | NOT_MODIFIED,
)
def get_history(run: Name, query: Annotated[HistoryQuery, Query()], request: Request, state: CurrentState) -> Response:
    with state.reading() as session:
        tag = _tag(session, run, query)
        if (same := not_modified(request, tag)) is not None:
            return same
        body = state.answers.get(run, tag, lambda: _read(session, run, query))
        return JsonAnswer(body, headers=caching_headers(tag))


def _tag(session: Session, run: str, query: SummaryQuery) -> str:
    """Return what stays the same as long as the answer to a question about a run's history does."""
    row = find_run(session, run)
    question = [type(query).__name__, query.model_dump(), gaps_mark(session, row)]
    return history_tag(row, __version__, question)


def _read(session: Session, run: str, query: HistoryQuery) -> bytes:
    window = Window(query.x, query.first, query.last)
    if query.points is None:
        return rendered(read_history(session, run, query.metric, query.variant, window, query.limit, query.cursor))
    return rendered(read_buckets(session, run, query.metric, query.variant, window, query.points))


@router.get(
    "/runs/{run}/summary",
    summary="The newest and the best value of every metric of a run",
    description="`best` is the lowest or the highest finite value, by the metric's direction, and of equal ones the "
    "first; null where the metric has no direction or no finite value. `gaps` are those of the history.",
    response_model=None,
    responses=document(200, "A series per metric, variant and protocol.", Summary) | NOT_MODIFIED,
)
def get_summary(run: Name, query: Annotated[SummaryQuery, Query()], request: Request, state: CurrentState) -> Response:
    with state.reading() as session:
        tag = _tag(session, run, query)
        if (same := not_modified(request, tag)) is not None:
            return same
        body = state.answers.get(run, tag, lambda: rendered(read_summary(session, run, query.metric, query.variant)))
        return JsonAnswer(body, headers=caching_headers(tag))
