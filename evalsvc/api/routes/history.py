"""Routes that read the history of a run: whole, in pages, in buckets, or as a summary."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc import __version__
from evalsvc.api.json_answer import NOT_MODIFIED, JsonAnswer, answer, rendered
from evalsvc.api.middleware.access import needs
from evalsvc.api.middleware.conditional import caching_headers, not_modified
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import HistoryQuery, RunPath, SummaryQuery
from evalsvc.api.state import CurrentState
from evalsvc.spec.documents.history import Buckets, History, Summary
from evalsvc.store.history.buckets import read_buckets
from evalsvc.store.history.gaps import gaps_mark
from evalsvc.store.history.reading import read_history, read_summary
from evalsvc.store.history.series import Window
from evalsvc.store.history.writing import history_tag
from evalsvc.store.lookup import find_run

router = router_of(prefix="/v1", tags=["history"])


@router.get(
    "/runs/{run}/metrics",
    summary="Get a run's history: metrics by training step or tokens",
    description="The answer has a series for each metric, variant and protocol. The values of a series are comparable. "
    "`differs` has the fields in which the protocols of a metric differ. NaN and infinities are strings. `omitted` is "
    "the number of values without an x, since their checkpoints were posted without `tokens_seen`. `import` has the id "
    "of the import for imported values.\n\n"
    "With `points`, the range of x from `from` to `to`, by default from the first to the last value, is cut into at "
    "most `points` ranges of `width` = ⌈range / points⌉, the same for all series. A series has a bucket for each range "
    "with values: the `last` value with its `x`, `stderr`, `n` and `groups`, whether its checkpoint is `virtual`, "
    "`min`, `max` and `mean` of the finite values, the `count` of all values, and the numbers of values that are "
    "`nan`, `positive_infinity`, `negative_infinity` and `imported`.\n\n"
    "With `limit`, the answer is a page: send `next_cursor` as `cursor` of the next request. New values move no value "
    "to another page.\n\n"
    "`gaps` gives the reason why a step has no values: the evaluation `failed`, was `skipped` by the run's plan, was "
    "`cancelled`, or is `pending`. The answer has at most 500 gaps, of the highest steps; `more_gaps` says whether "
    "there are more.",
    responses={200: answer(History | Buckets, "Series with columns ordered by x."), **NOT_MODIFIED},
)
@needs("read")
def get_history(
    run: RunPath, query: Annotated[HistoryQuery, Query()], request: Request, state: CurrentState
) -> Response:
    with state.reading() as session:
        tag = tag_of(session, run, query)
        if (unchanged := not_modified(request, tag)) is not None:
            return unchanged
        body = state.answers.get(run, tag, lambda: rendered(_read(session, run, query)))
        return JsonAnswer(body, headers=caching_headers(tag))


def tag_of(session: Session, run: str, query: SummaryQuery) -> str:
    """Return a tag that changes whenever the answer to a question about a run's history may change."""
    row = find_run(session, run)
    question = [type(query).__name__, query.model_dump(), gaps_mark(session, row)]
    return history_tag(row, __version__, question)


def _read(session: Session, run: str, query: HistoryQuery) -> History | Buckets:
    window = Window(query.x, query.first, query.last)
    if query.points is None:
        return read_history(session, run, query.metric, query.variant, window, query.limit, query.cursor)
    return read_buckets(session, run, query.metric, query.variant, window, query.points)


@router.get(
    "/runs/{run}/summary",
    summary="Get the newest and the best value of every metric of a run",
    description="`best` is the lowest or the highest finite value, by the metric's direction, and the first of equal "
    "values; null for a metric without a direction or without finite values. `gaps` are the gaps of the history.",
    responses={
        200: answer(Summary, "A series for each metric, variant and protocol."),
        **NOT_MODIFIED,
    },
)
@needs("read")
def get_summary(
    run: RunPath, query: Annotated[SummaryQuery, Query()], request: Request, state: CurrentState
) -> Response:
    with state.reading() as session:
        tag = tag_of(session, run, query)
        if (unchanged := not_modified(request, tag)) is not None:
            return unchanged
        body = state.answers.get(run, tag, lambda: rendered(read_summary(session, run, query.metric, query.variant)))
        return JsonAnswer(body, headers=caching_headers(tag))
