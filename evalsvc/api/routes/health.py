"""Health checks: whether the service answers, and whether the service can evaluate."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from evalsvc import __version__
from evalsvc.api.errors import PROBLEM_CONTENT, problem
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.middleware.access import MaySee
from evalsvc.api.routing import router_of
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import EvalsvcError, NotReady
from evalsvc.spec import documents

router = router_of(tags=["health"])


@router.get(
    "/healthz",
    summary="The service answers",
    description="Asks neither the database nor the workers: for probes that restart a service which hangs.",
    responses=document(200, "It does.", documents.Health),
)
async def healthz() -> JsonAnswer:
    return JsonAnswer(documents.Health(status="ok", version=__version__))


@router.get(
    "/readyz",
    summary="The service can evaluate: database, schema and workers are there",
    description="For probes that send no requests while a part is missing. A service with tokens tells details "
    "only to requests with a token.",
    response_model=None,
    responses=document(200, "It can.", documents.Ready, documents.ReadOnlyReady, documents.Alive)
    | {503: {"description": "`detail` says which part is missing.", "content": PROBLEM_CONTENT}},
)
async def readyz(state: CurrentState, may_see: MaySee) -> JSONResponse:
    missing = await state.threads.run("probe", missing_parts, state)
    if missing:
        shown = missing if may_see else ["a request with a token is told what is missing"]
        return problem(503, NotReady.code, "not ready: " + "; ".join(shown))
    if not may_see:
        return JsonAnswer(documents.Alive(status="ok"))
    workers = state.coordinator.workers()
    if state.settings.read_only:
        return JsonAnswer(
            documents.ReadOnlyReady(status="ok", database="ok", schema="ok", workers=workers, read_only=True)
        )
    return JsonAnswer(documents.Ready(status="ok", database="ok", schema="ok", workers=workers))


def missing_parts(state: State) -> list[str]:
    """Return what keeps the service from evaluating, each with what to do."""
    missing = []
    try:
        state.store.ping()
        state.store.check_schema()
    except EvalsvcError as error:
        missing.append(error.message)
    if state.settings.read_only:
        return missing
    if not missing and (problem := state.store.writes.problem()):
        missing.append(problem)
    if state.coordinator.displaced():
        missing.append("another service has taken over the database; stop this one")
    if state.coordinator.draining():
        missing.append("draining: it ends once what runs is stored, or EVALSVC_GRACE is over; what is posted is kept")
    if not state.coordinator.alive():
        missing.append("the coordinator dispatches no shards any more; restart the service, its log says why")
    if not state.coordinator.workers():
        missing.append(
            "no live worker; one that starts takes some seconds, `evalsvc doctor` says what keeps one from starting"
        )
    return missing
