"""The route of a run's headline: the metrics that tables and dashboards show first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import NOT_MODIFIED, JsonAnswer, document, rendered
from evalsvc.api.middleware.conditional import caching_headers, not_modified
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import HeadlinesQuery, Name
from evalsvc.api.state import CurrentState, State
from evalsvc.compare.newest import with_verdicts
from evalsvc.compare.result import Result
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, UnknownName
from evalsvc.spec.documents.history import Headline, Headlines, RunHeadlines
from evalsvc.spec.names import parse_checkpoint
from evalsvc.store.history.headlines import (
    HeadlineOf,
    MarkedRun,
    Question,
    headline_of_run,
    marked_runs,
    read_headline,
    read_run_headlines,
)
from evalsvc.store.results import read_values

router = router_of(prefix="/v1", tags=["history"], responses=PROBLEMS)


@router.get(
    "/runs/{run}/headline",
    summary="Get the metrics of a run to show first",
    description="The answer has the metrics in the current headlines of the suites that evaluated the run's "
    "checkpoints. If no headline has a metric with a value, a rule chooses at most six metrics, in turn from each "
    "task and benchmark, and metrics with a direction first. `left_out` lists requested metrics that the newest "
    "evaluation of each suite could not measure.",
    responses=document(200, "The metrics, the most important metric first.", Headline),
)
def get_headline(run: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(read_headline(session, run, partial(_headline_of, session, state.settings)))


@router.get(
    "/headlines",
    summary="The headline metrics of several runs",
    description="Of each run the metrics of `GET /v1/runs/{run}/headline`, at most six, or those that the request "
    "names: the series with the newest value, its newest and its best value, and the value of the run's base under the "
    "same protocol. With `points`, values along training, for a small curve: all of few values, or so many evenly by "
    "rank. With `to`, all as if later steps had no values. With `compare`, verdicts on the newest values, "
    "run by run until the time is over; ask again for the others; against the best of K at level 1 − 0.05 / (K − 1).",
    response_model=None,
    responses=document(200, "The runs in the order of the request.", Headlines) | NOT_MODIFIED,
)
def get_headlines(query: Annotated[HeadlinesQuery, Query()], request: Request, state: CurrentState) -> Response:
    until = time.monotonic() + query.compare
    with state.reading() as session:
        headline_of = cache(partial(_headline_of, session, state.settings))
        parts = [
            _RunPart(session, state, marked, _question(session, state, marked, query, headline_of))
            for marked in marked_runs(session, query.run)
        ]
        bodies = [part.body(until if query.compare else None) for part in parts]
    body = b'{"runs":[' + b",".join(bodies) + b"]}"
    tag = hashlib.sha256(body).hexdigest()[:32]
    if (same := not_modified(request, tag)) is not None:
        return same
    return JsonAnswer(body, headers=caching_headers(tag))


def _question(
    session: Session, state: State, marked: MarkedRun, query: HeadlinesQuery, headline_of: HeadlineOf
) -> Question:
    metrics = query.metric or headline_of_run(session, marked, headline_of, state.answers.get)
    return Question(tuple(dict.fromkeys(metrics)), query.points, query.last)


@dataclass(frozen=True)
class _RunPart:
    """The part of an answer about one run."""

    session: Session
    state: State
    marked: MarkedRun
    question: Question

    def body(self, until: float | None) -> bytes:
        """Return the part as JSON; with verdicts if they are kept, or if the moment `until` is not over."""
        answers, run = self.state.answers, self.marked.run
        compared = self.marked.tag(["compared", *astuple(self.question)])
        if until is not None:
            if time.monotonic() < until:
                return answers.get(run.name, compared, self._compared)
            if (kept := answers.kept(run.name, compared)) is not None:
                return kept
        tag = self.marked.tag(["headlines", *astuple(self.question)])
        return answers.get(run.name, tag, lambda: rendered(self._read()))

    def _read(self) -> RunHeadlines:
        return read_run_headlines(self.session, self.marked.run, self.question)

    def _compared(self) -> bytes:
        headlines = self._read()
        read = cache(partial(_result, self.session, self.state.settings.items_path))
        return rendered(replace(headlines, series=with_verdicts(headlines.run, headlines.series, read)))


def _result(session: Session, folder: Path, name: str) -> Result | None:
    """Return the result of a checkpoint by its name; None if the checkpoint is gone, or has no evaluation."""
    try:
        return Result(name, *read_values(session, folder, *parse_checkpoint(name)))
    except UnknownName:
        return None


def _headline_of(session: Session, settings: Settings, suite: str) -> Sequence[str]:
    try:
        return find_suite(session, settings, suite).headline
    except EvalsvcError:  # the suite is broken or was deleted
        return ()
