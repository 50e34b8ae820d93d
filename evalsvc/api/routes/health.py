"""Routes of the service's state: workers, queue and evaluations; liveness and readiness."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from evalsvc import __version__
from evalsvc.api.answers import NOT_MODIFIED, JsonAnswer, answer, tagged
from evalsvc.api.errors import PROBLEM_CONTENT, PROBLEMS, problem
from evalsvc.api.middleware.access import MaySee, needs
from evalsvc.api.routing import router_of
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import EvalsvcError, NotReady
from evalsvc.installation import code_digest, find_commit
from evalsvc.spec import documents
from evalsvc.store.queue.status import failed_view, queue_view, running_view, warned_view, work_view
from evalsvc.store.views import document_of, read_pace

router = router_of(tags=["health"], responses=None)


@router.get(
    "/v1/status",
    summary="Get the state of the service",
    description="`missing` lists what keeps the service from evaluating, as `/readyz` does. `seconds_left` is an "
    "estimate from the shards of the newest evaluations. `disk` is measured at most once a minute.",
    responses={**PROBLEMS, 200: answer(documents.Status, "The state of the service."), **NOT_MODIFIED},
)
@needs("read")
def get_status(request: Request, state: CurrentState) -> Response:
    return tagged(request, read_status(state))


def read_status(state: State) -> documents.Status:
    missing = missing_parts(state)
    live = state.coordinator.live()
    with state.reading() as session:
        pace = read_pace(session, live, state.coordinator.workers())
        work = work_view(session, state.coordinator.at_work())
        members = state.coordinator.members()
        return documents.Status(
            status="not_ready" if missing else "ready",
            missing=missing,
            version=__version__,
            code=code_digest(),
            commit=find_commit(),
            database=session.get_bind().dialect.name,
            workers=[document_of(documents.Worker, member, runs=work.get(member.address)) for member in members],
            queue=queue_view(session, pace),
            running=running_view(session, live, pace),
            failed=failed_view(session),
            warned=warned_view(session),
            disk=state.disk.view(session),
        )


@router.get(
    "/healthz",
    summary="Check that the service answers",
    description="A liveness probe, for restarting a service that hangs. The check reads neither the database nor the "
    "state of workers.",
    responses={200: answer(documents.Health, "The service answers.")},
)
@needs(None)
async def healthz() -> JsonAnswer:
    return JsonAnswer(documents.Health(status="ok", version=__version__, code=code_digest(), commit=find_commit()))


@router.get(
    "/readyz",
    summary="Check that the service can evaluate",
    description="A readiness probe of the database, its schema version, the coordinator and the workers. A service "
    "with tokens shows details only to requests with a token.",
    responses={
        200: answer(documents.Ready | documents.ReadOnlyReady | documents.Alive, "The service can evaluate."),
        503: {"description": "`detail` says which part is missing.", "content": PROBLEM_CONTENT},
    },
)
@needs(None, recognises=True)
async def readyz(state: CurrentState, may_see: MaySee) -> JSONResponse:
    missing = await state.threads.run("probe", missing_parts, state)
    if missing:
        shown = missing if may_see else ["send a token to see what is missing"]
        return problem(503, NotReady.code, "not ready: " + "; ".join(shown))
    if not may_see:
        return JsonAnswer(documents.Alive(status="ok"))
    workers = state.coordinator.workers()
    if state.settings.read_only:
        return JsonAnswer(
            documents.ReadOnlyReady(status="ok", database="ok", schema_="ok", workers=workers, read_only=True)
        )
    return JsonAnswer(documents.Ready(status="ok", database="ok", schema_="ok", workers=workers))


def missing_parts(state: State) -> list[str]:
    """Return the problems that keep the service from evaluating, each with what to do."""
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
        missing.append(
            "the service is draining: it stops once running shards are stored, at the latest after EVALSVC_GRACE, and "
            "keeps posted checkpoints; wait for the next start"
        )
    if not state.coordinator.alive():
        missing.append("the coordinator has stopped; restart the service, whose log names the cause")
    members = state.coordinator.members()
    if all(member.refuses for member in members):
        missing.append(
            "no live worker; wait some seconds for a starting worker, or find out with `evalsvc doctor` why no "
            "worker starts" + "".join(f"; {member.name} on {member.host}: {member.refuses}" for member in members[:3])
        )
    return missing
