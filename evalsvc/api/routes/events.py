"""Server-sent events of an evaluation. A client that reconnects gets the events after the last one that it received.

While there are streams, one task on the event loop polls the database for all of them. A waiting stream occupies a
socket, but no thread and no connection to the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, get_args

from anyio import CapacityLimiter, to_thread
from fastapi import Header, Query, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from evalsvc.api.errors import STATUS, problem
from evalsvc.api.middleware.access import needs
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import MAX_ID, EvaluationId
from evalsvc.api.state import State
from evalsvc.errors import EvalsvcError, InvalidRequest, RateLimited, UnknownName
from evalsvc.spec import documents
from evalsvc.spec.documents.evaluations import EventKind
from evalsvc.store.events import newest_events, read_events, read_progress
from evalsvc.store.views import LiveTask, progress_view

log = logging.getLogger(__name__)

STREAMS = 250
"""The most streams, a quarter of all connections. Further clients are told to retry later."""

LOOK_EVERY, PROGRESS_EVERY = 0.5, 2.0
"""Seconds between two polls of the database for all streams together, and between two `progress` events of a stream."""

HEARTBEAT_EVERY = 15.0
"""Seconds of silence after which a comment is sent, since proxies close silent connections."""

LIFETIME = 900.0
"""Seconds after which a stream ends and its client reconnects, so that a revoked token is noticed."""

RETRY_SECONDS, BUSY_SECONDS = 2, 30
"""Seconds that clients wait before they reconnect, and when there are too many streams."""

READERS = 4
"""The number of threads that read the database for streams, separate from the threads of other requests."""

router = router_of(prefix="/v1/evaluations", tags=["evaluations"])

Progress = dict[str, documents.Progress]

T = TypeVar("T")


@dataclass(eq=False)
class Follower:
    evaluation_id: int
    seen: int
    """The number of the last event that was sent."""
    newest: int | None = None
    """The number of the evaluation's newest event at the last poll; None before the first poll."""
    progress: Progress = field(default_factory=dict)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    """A flag that is set when there may be something to send."""


class Followers:
    """All streams of the service, and the task that polls the database for them."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._followers: set[Follower] = set()
        self._looking: asyncio.Task[None] | None = None
        self._readers = CapacityLimiter(READERS)
        self._stopping = False

    def __len__(self) -> int:
        return len(self._followers)

    def stop(self) -> None:
        """End all streams. Clients reconnect, after a restart to the new service."""
        self._stopping = True
        for follower in self._followers:
            follower.stirred.set()

    async def close(self) -> None:
        self.stop()
        if self._looking is not None:
            await self._looking

    async def read(self, question: Callable[[Session], T]) -> T:
        def read() -> T:
            with self._state.reading() as session:
                return question(session)

        return await to_thread.run_sync(read, limiter=self._readers)

    @contextlib.contextmanager
    def following(self, evaluation_id: int, after: int) -> Iterator[Follower]:
        """Register a stream of the events after number `after` while the context is active."""
        follower = Follower(evaluation_id, after)
        self._followers.add(follower)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def stream(self, follower: Follower) -> AsyncIterator[bytes]:
        """Yield the frames of events that the follower has not received, until the evaluation has ended."""
        end = time.monotonic() + LIFETIME
        sent_progress, next_progress = Progress(), time.monotonic()
        yield format_sse_event(retry=RETRY_SECONDS * 1000)
        while not self._stopping and time.monotonic() < end:
            follower.stirred.clear()
            if follower.newest != follower.seen:
                try:
                    page = await self.read(lambda session: read_events(session, follower.evaluation_id, follower.seen))
                except EvalsvcError as error:
                    log.warning("an event stream waits for the database: %s", error)
                    await asyncio.sleep(LOOK_EVERY)
                    continue
                if page is None:
                    return  # the evaluation was deleted, and the client gets 404 when it reconnects
                for event in page.events:
                    at = event.created_at.isoformat(timespec="milliseconds")
                    fields = {"at": at, "task": event.task, "state": event.state}
                    known = {name: value for name, value in fields.items() if value is not None}
                    data = {"evaluation": event.evaluation_id, **known, **(event.data or {})}
                    yield _frame(event.kind, data, event.number)
                    follower.seen = event.number
                if page.is_last:
                    yield _frame("end", {"evaluation": follower.evaluation_id, "state": page.state}, follower.seen)
                    return
                if follower.seen < page.newest:
                    continue
            if follower.progress != sent_progress and time.monotonic() >= next_progress:
                sent_progress, next_progress = follower.progress, time.monotonic() + PROGRESS_EVERY
                yield _frame("progress", {"evaluation": follower.evaluation_id, "tasks": sent_progress})
            try:
                await asyncio.wait_for(follower.stirred.wait(), HEARTBEAT_EVERY)
            except TimeoutError:
                yield format_sse_event(comment="still here")

    async def _look(self) -> None:
        try:
            while self._followers and not self._stopping:
                await asyncio.sleep(LOOK_EVERY)
                try:
                    await self._look_once()
                except EvalsvcError as error:
                    log.warning("events could not be read: %s", error)
                except Exception:
                    log.exception("events could not be read; trying again")
        finally:
            self._looking = None

    async def _look_once(self) -> None:
        ids = {follower.evaluation_id for follower in self._followers}
        live = dict(self._state.coordinator.live())
        newest, progress = await self.read(lambda session: _look_at(session, ids, live))
        for follower in self._followers:
            follower.newest = newest.get(follower.evaluation_id)  # None for a deleted evaluation
            follower.progress = progress.get(follower.evaluation_id, {})
            if follower.newest != follower.seen or follower.progress:
                follower.stirred.set()


class EventStream(Response):
    """A response that streams the events of an evaluation, or refuses the request if there are too many streams."""

    def __init__(self, followers: Followers, evaluation_id: int, after: int) -> None:
        super().__init__()
        self._followers, self._evaluation_id, self._after = followers, evaluation_id, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Checked here because other streams may begin between the route and this call.
        if len(self._followers) >= STREAMS:
            detail = (
                f"{STREAMS} event streams are open, which is the limit; try again in {BUSY_SECONDS} s, or poll "
                "GET /v1/evaluations/{id}"
            )
            refusal = problem(STATUS[RateLimited], RateLimited.code, detail, {"Retry-After": str(BUSY_SECONDS)})
            await refusal(scope, receive, send)
            return
        with self._followers.following(self._evaluation_id, self._after) as follower:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            stream = EventSourceResponse(self._followers.stream(follower), headers=headers)
            await stream(scope, receive, send)


def _look_at(
    session: Session, ids: set[int], live: Mapping[int, LiveTask]
) -> tuple[dict[int, int], dict[int, Progress]]:
    progress: dict[int, Progress] = {}
    for task in read_progress(session, live, ids) if live else ():
        work = live[task.id]
        task_progress = progress_view(task.finished + work.done, task.total, task.unit, work.per_second)
        progress.setdefault(task.evaluation_id, {})[task.name] = task_progress
    return newest_events(session, ids), progress


def _frame(kind: str, data: Mapping[str, object], number: int | None = None) -> bytes:
    text = to_json(data, inf_nan_mode="strings").decode()
    return format_sse_event(event=kind, data_str=text, id=None if number is None else str(number))


_EXAMPLE = """retry: 2000

event: state
data: {"evaluation": 40, "at": "2026-02-03T10:11:12.131+00:00", "state": "queued"}
id: 1

event: progress
data: {"evaluation": 40, "tasks": {"loss": {"done": 96, "total": 400, "unit": "sequences", "per_second": 12.5, \
"seconds_left": 24.3}}}

event: end
data: {"evaluation": 40, "state": "succeeded"}
id: 5
"""

_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": list(get_args(EventKind))},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "description": "An event of the stream. `data` is a JSON object.",
}

Seen = Annotated[
    int, Query(ge=0, le=MAX_ID, description="The id of the last event that you received; the stream begins after it.")
]

SeenHeader = Annotated[
    int,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=MAX_ID,
        description="The same as `last_event_id`; browsers send it when they reconnect.",
    ),
]


@router.get(
    "/{evaluation_id}/events",
    summary="Follow an evaluation by server-sent events",
    description="The events are: `state` and `task`, with the new state of the evaluation or of a task, the error of a "
    "failure and the warnings of a result; `interim`, with the interim result of a running task; `progress`, at most "
    "every two seconds, with the progress of running tasks; and `end`, after which the stream ends.\n\nAll events but "
    "`progress` have an id. A client that reconnects with the id of the last event that it received misses no event, "
    "even after a restart of the service. A stream also ends after 15 minutes without `end`; reconnect in the same "
    "way.",
    response_class=Response,
    responses={
        200: {"description": "The events.", "content": {"text/event-stream": {"schema": _EVENT, "example": _EXAMPLE}}},
        204: {"description": "The evaluation has ended, and you have all of its events: do not reconnect."},
    },
)
@needs("read")
async def get_events(
    evaluation_id: EvaluationId, request: Request, last_event_id: Seen = 0, last_event_id_header: SeenHeader = 0
) -> Response:
    followers: Followers = request.app.state.followers
    # A browser that reconnects uses the original URL, and sends the newer id in the header.
    seen = last_event_id_header or last_event_id
    page = await followers.read(lambda session: read_events(session, evaluation_id, seen))
    if page is None:
        raise UnknownName(f"there is no evaluation {evaluation_id}; GET /v1/evaluations lists the evaluations")
    if seen > page.newest:
        raise InvalidRequest(
            f"last_event_id is {seen}, and the newest event of evaluation {evaluation_id} is {page.newest}; leave "
            "last_event_id out to get all events"
        )
    if seen and page.is_last and not page.events:
        return Response(status_code=204)
    return EventStream(followers, evaluation_id, seen)
