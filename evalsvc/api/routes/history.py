"""Routes that read the history of a run: whole, in pages, in buckets, or as a summary; and headlines of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc import __version__
from evalsvc.api.answers import NOT_MODIFIED, Answers, JsonAnswer, answer, conditional, rendered, tagged
from evalsvc.api.middleware.access import needs
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import HeadlinesQuery, HistoryQuery, RunPath, SummaryQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.compare.difference_curves import Read, near_best, with_verdicts
from evalsvc.compare.result import Result
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.history import BEST_STEPS, Buckets, Headline, Headlines, History, RunHeadlines, Summary
from evalsvc.spec.names import parse_checkpoint
from evalsvc.store.history.buckets import read_buckets
from evalsvc.store.history.gaps import gaps_mark
from evalsvc.store.history.headlines import Question, headline_of_run, marked_runs, read_headline, read_run_headlines
from evalsvc.store.history.reading import best_values, read_history, read_summary
from evalsvc.store.history.series import Window
from evalsvc.store.history.writing import history_tag
from evalsvc.store.lookup import find_run
from evalsvc.store.results import read_values_along
from evalsvc.store.tables import Run

router = router_of(prefix="/v1", tags=["history"])

T = TypeVar("T")


@router.get(
    "/runs/{run}/metrics",
    summary="Get a run's history: metrics by training step or tokens",
    description="The answer has a series for each metric, variant and protocol. The values of a series are comparable. "
    "NaN and infinities are strings.\n\n"
    "With `points`, the range of x from `from` to `to`, by default from the first to the last value, is cut into at "
    "most `points` ranges of `width` = ⌈range / points⌉, the same for all series. A series has a bucket for each range "
    "with values.\n\n"
    "With `limit`, the answer is a page: send `next_cursor` as `cursor` of the next request. New values move no value "
    "to another page. Without `limit` and `points`, more than 200,000 values are refused.\n\n"
    "`gaps` gives the reasons why steps have no values, of the 500 highest such steps.",
    responses={200: answer(History | Buckets, "Series with columns ordered by x."), **NOT_MODIFIED},
)
@needs("read")
def get_history(
    run: RunPath, query: Annotated[HistoryQuery, Query()], request: Request, state: CurrentState
) -> Response:
    with state.reading() as session:
        tag = tag_of(session, run, query)
        window, asked = Window(query.x, query.first, query.last), (session, run, query.metric, query.variant)
        read: Callable[[], History | Buckets] = partial(read_history, *asked, window, query.limit, query.cursor)
        if query.points is not None:
            read = partial(read_buckets, *asked, window, query.points)
        return conditional(request, state.answers, run, tag, read)


def tag_of(session: Session, run: str, query: SummaryQuery) -> str:
    """Return a tag that changes whenever the answer to a question about a run's history may change."""
    row = find_run(session, run)
    question = [type(query).__name__, query.model_dump(), gaps_mark(session, row)]
    return history_tag(row, __version__, question)


@router.get(
    "/runs/{run}/summary",
    summary="Get the newest and the best value of every metric of a run",
    description="`gaps` are the gaps of the history.",
    responses={200: answer(Summary, "A series for each metric, variant and protocol."), **NOT_MODIFIED},
)
@needs("read")
def get_summary(
    run: RunPath, query: Annotated[SummaryQuery, Query()], request: Request, state: CurrentState
) -> Response:
    with state.reading() as session:
        tag = tag_of(session, run, query)
        read = partial(read_summary, session, run, query.metric, query.variant)
        return conditional(request, state.answers, run, tag, read)


@router.get(
    "/runs/{run}/headline",
    summary="Get the metrics of a run to show first",
    description="The answer has the metrics in the current headlines of the suites that evaluated the run's "
    "checkpoints. If no headline has a metric with a value, a rule chooses at most six metrics, in turn from each "
    "task and benchmark, and metrics with a direction first.",
    responses={200: answer(Headline, "The metrics, the most important metric first.")},
)
@needs("read")
def get_headline(run: RunPath, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(headline_of(session, state, run))


def headline_of(session: Session, state: State, run: str) -> Headline:
    return read_headline(session, run, partial(_headline_of, session, state.settings))


@router.get(
    "/headlines",
    summary="The headline metrics of several runs",
    description="Of each run the metrics of `GET /v1/runs/{run}/headline`, at most six, or those that the request "
    "names: the series with the newest value, its newest and its best value, and the value of the run's base under the "
    "same protocol. With `compare`, the newest value is held against the best of K at the level 1 − 0.05 / (K − 1).",
    responses={200: answer(Headlines, "The runs in the order of the request."), **NOT_MODIFIED},
)
@needs("read")
def get_headlines(query: Annotated[HeadlinesQuery, Query()], request: Request, state: CurrentState) -> Response:
    question = Question(tuple(query.metric), query.points, query.last, query.strip)
    with state.reading() as session:
        bodies = headlines_of(session, state, query.run, question, query.compare, state.answers, rendered)
    return tagged(request, b'{"runs":[' + b",".join(bodies) + b"]}")


def headlines_of(
    session: Session,
    state: State,
    runs: Sequence[str],
    asked: Question,
    seconds: float,
    answers: Answers[T],
    form: Callable[[RunHeadlines], T],
) -> list[T]:
    """Return the headlines of runs, each in the form that `answers` keeps. Runs have verdicts if `answers` has them, or
    until so many `seconds` have been spent on comparisons; none have for 0."""
    headline, folder, left = cache(partial(_headline_of, session, state.settings)), state.settings.items_path, seconds
    made = []
    for marked in marked_runs(session, runs):
        metrics, run = asked.metrics or headline_of_run(session, marked, headline, state.answers.get), marked.run
        question = replace(asked, metrics=tuple(dict.fromkeys(metrics)))
        compared, plain = (marked.tag([kind, *astuple(question)]) for kind in ("compared", "headlines"))
        results = partial(read_known, session, folder, {})
        read = partial(read_with_noise, session, run, question, results)
        answer = answers.kept(run.name, compared) if seconds else None
        if answer is None and left > 0:
            headlines, begun = read(), time.monotonic()
            series = with_verdicts(run.name, headlines.series, results)
            left -= time.monotonic() - begun
            answer = answers.get(run.name, compared, partial(form, headlines.model_copy(update={"series": series})))
        made.append(answers.get(run.name, plain, lambda: form(read())) if answer is None else answer)  # noqa: B023
    return made


def read_with_noise(session: Session, run: Run, question: Question, results: Read) -> RunHeadlines:
    """Return the headlines of a run; if they are asked for, with the steps within the noise of the best values."""
    headlines = read_run_headlines(session, run, question)
    series = [] if question.near else headlines.series
    for item in headlines.series if question.near else ():
        values = best_values(session, run, item, BEST_STEPS, question.last)
        series.append(item.model_copy(update={"near_best": near_best(run.name, item, values, results)}))
    return headlines.model_copy(update={"series": series})


def read_known(session: Session, folder: Path, known: dict[str, Result], names: Collection[str]) -> dict[str, Result]:
    """Add the results of checkpoints to `known`, which has results by name, and return it. One query reads the results
    of a run. Checkpoints without an evaluation are left out."""
    named = {parse_checkpoint(name): name for name in names if name not in known}
    for run, variant in {(run, variant) for run, _, variant in named}:
        steps = [step for of_run, step, of_variant in named if (of_run, of_variant) == (run, variant)]
        for step, values in read_values_along(session, folder, run, steps, variant):
            name = named[run, step, variant]
            known[name] = Result(name, *values)
    return known


def _headline_of(session: Session, settings: Settings, suite: str) -> Sequence[str]:
    try:
        return find_suite(session, settings, suite).headline
    except EvalsvcError:  # the suite is broken or was deleted
        return ()
