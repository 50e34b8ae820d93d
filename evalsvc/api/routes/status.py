"""The state of the whole service in one answer, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalsvc import __version__
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, answer
from evalsvc.api.response_schemas import STATUS
from evalsvc.api.routes.health import missing_parts
from evalsvc.api.routing import router_of
from evalsvc.api.state import CurrentState, State
from evalsvc.service.in_flight import AtWork
from evalsvc.store.queue.status import failed_view, places_of, queue_view, running_view, warned_view

router = router_of(prefix="/v1/status", tags=["health"], responses=PROBLEMS)

_STATUS = {
    "status": "ready",
    "missing": [],
    "version": "0.1.0",
    "database": "sqlite",
    "workers": [
        {
            "name": "cuda:0#0",
            "host": "127.0.0.1",
            "takes_shards": True,
            "runs": {"evaluation": 40, "run": "t2i-1b", "step": 2500, "task": "coco", "stage": "run", "seconds": 12.5},
        }
    ],
    "queue": {
        "queued": 3,
        "running": 1,
        "oldest_seconds": 340.2,
        "shards": {"queued": 20, "running": 1},
        "finished_last_hour": 12,
        "seconds_left": 1200.0,
        "runs": [{"run": "t2i-1b", "queued": 3, "running": 1, "oldest_seconds": 340.2}],
    },
    "running": [
        {
            "id": 40,
            "run": "t2i-1b",
            "step": 2500,
            "variant": "raw",
            "started_at": "2026-01-01T12:00:00.000+00:00",
            "suite": "coco",
            "tasks": [
                {
                    "name": "coco",
                    "progress": {
                        "done": 96,
                        "total": 400,
                        "unit": "images",
                        "per_second": 12.5,
                        "seconds_left": 24.3,
                    },
                }
            ],
        }
    ],
    "failed": [
        {
            "id": 39,
            "run": "t2i-1b",
            "step": 2000,
            "variant": "raw",
            "suite": "coco",
            "state": "failed",
            "finished_at": "2026-01-01T11:00:00.000+00:00",
            "error": {"code": "checkpoint_gone", "message": "…"},
        }
    ],
    "warned": [
        {
            "id": 38,
            "run": "t2i-1b",
            "step": 1500,
            "variant": "raw",
            "suite": "captions",
            "task": "captions",
            "warnings": [{"code": "worse_than_guessing", "metric": "captions/image_within", "message": "…"}],
        }
    ],
}


@router.get(
    "",
    summary="How the service is: workers, queue, what runs, what failed last, what is suspicious",
    description="`missing` says what keeps it from evaluating, as `/readyz` does; `seconds_left` is how long the queue "
    "takes at the pace of the last hour, idle time left out.",
    responses=answer(200, "The state.", STATUS, _STATUS),
)
def get_status(state: CurrentState) -> JsonAnswer:
    missing = missing_parts(state)
    live = state.coordinator.live()
    with state.reading() as session:
        at_work = state.coordinator.at_work()
        places = places_of(session, (work.task_id for work in at_work.values()))
        content = {
            "status": "not_ready" if missing else "ready",
            "missing": missing,
            "version": __version__,
            "database": session.get_bind().dialect.name,
            "workers": _workers(state, at_work, places),
            "queue": queue_view(session),
            "running": running_view(session, live),
            "failed": failed_view(session),
            "warned": warned_view(session),
        }
    return JsonAnswer(content)


def _workers(state: State, at_work: Mapping[str, AtWork], places: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    workers = []
    for member in state.coordinator.members():
        work = at_work.get(member.address)
        place = None if work is None else places.get(work.task_id)
        runs = None if work is None or place is None else place | {"stage": work.stage, "seconds": work.seconds}
        workers.append({"name": member.name, "host": member.host, "takes_shards": member.takes_shards, "runs": runs})
    return workers
