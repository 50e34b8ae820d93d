"""The route of a run's headline: the metrics that tables and dashboards show first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy.orm import Session

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import Name
from evalsvc.api.state import CurrentState
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.history import Headline
from evalsvc.store.history.headline import read_headline

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


def _headline_of(session: Session, settings: Settings, suite: str) -> Sequence[str]:
    try:
        return find_suite(session, settings, suite).headline
    except EvalsvcError:  # the suite is broken or was deleted
        return ()
