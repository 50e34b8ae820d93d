"""The route of the service's state: workers, queue, running and failed evaluations."""

from __future__ import annotations

from evalsvc import __version__
from evalsvc.api.json_answer import JsonAnswer, answer
from evalsvc.api.middleware.access import needs
from evalsvc.api.routes.health import missing_parts
from evalsvc.api.routing import router_of
from evalsvc.api.state import CurrentState, State
from evalsvc.spec import documents
from evalsvc.store.queue.status import failed_view, queue_view, running_view, warned_view, work_view
from evalsvc.store.views import document_of

router = router_of(prefix="/v1/status", tags=["health"])


@router.get(
    "",
    summary="Get the state of the service",
    description="The answer has the workers, the queue, the running evaluations, the last failed evaluations and the "
    "last warnings. `missing` lists what keeps the service from evaluating, as `/readyz` does. `seconds_left` is an "
    "estimate for the queue from the rate of the last hour without idle time. `disk` is measured at most once a "
    "minute.",
    responses={200: answer(documents.Status, "The state of the service.")},
)
@needs("read")
def get_status(state: CurrentState) -> JsonAnswer:
    return JsonAnswer(read_status(state))


def read_status(state: State) -> documents.Status:
    """Return the state of the service."""
    missing = missing_parts(state)
    live = state.coordinator.live()
    with state.reading() as session:
        work = work_view(session, state.coordinator.at_work())
        members = state.coordinator.members()
        return documents.Status(
            status="not_ready" if missing else "ready",
            missing=missing,
            version=__version__,
            database=session.get_bind().dialect.name,
            workers=[document_of(documents.Worker, member, runs=work.get(member.address)) for member in members],
            queue=queue_view(session),
            running=running_view(session, live),
            failed=failed_view(session),
            warned=warned_view(session),
            disk=state.disk.view(session),
        )
