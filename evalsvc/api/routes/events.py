"""Server-sent events of an evaluation, which a disconnected client resumes after the last event that it has.

One task of the event loop polls the database for all streams, and only while there is a stream. A waiting stream holds
a socket, but no thread and no connection to the database.
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

from evalsvc.api.errors import PROBLEMS, STATUS, problem
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import MAX_ID, Id
from evalsvc.api.state import State
from evalsvc.errors import EvalsvcError, InvalidRequest, RateLimited, UnknownName
from evalsvc.spec import documents
from evalsvc.spec.documents.events import EventKind
from evalsvc.store.events import newest_events, read_events, read_progress
from evalsvc.store.tables import EvaluationEvent
from evalsvc.store.views import LiveTask, progress_view

log = logging.getLogger(__name__)

STREAMS = 250
"""The most streams, a quarter of all connections. Further clients are asked to come back later."""

LOOK_EVERY = 0.5
"""Seconds between two polls of the database, for all streams together."""

PROGRESS_EVERY = 2.0
"""Seconds between two events of progress in a stream."""

HEARTBEAT_EVERY = 15.0
"""Seconds of silence after which a comment is sent, since proxies close silent connections."""

LIFETIME = 900.0
"""Seconds after which a stream ends and its client reconnects, with a token that may be revoked by then."""

RETRY_SECONDS = 2
"""Seconds that clients wait before they reconnect."""

BUSY_SECONDS = 30
"""Seconds that clients wait if there are too many streams."""

READERS = 4
"""Threads that read the database for streams, apart from the threads of other requests."""

router = router_of(prefix="/v1/evaluations", tags=["evaluations"], responses=PROBLEMS)

Progress = dict[str, documents.Progress]
"""Progress of running tasks by name."""

T = TypeVar("T")


@dataclass(eq=False)
class Follower:
    """A stream. `stirred` is set when there may be something to send."""

    evaluation_id: int
    seen: int
    """The number of the last event that was sent."""
    newest: int | None = None
    """The number of the evaluation's newest event at the last poll; None before the first poll."""
    progress: Progress = field(default_factory=dict)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)


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
        """End all streams. Their clients reconnect to the next service."""
        self._stopping = True
        for follower in self._followers:
            follower.stirred.set()

    async def close(self) -> None:
        self.stop()
        if self._looking is not None:
            await self._looking

    async def read(self, question: Callable[[Session], T]) -> T:
        """Ask the database in one of the streams' own threads.

        Raises:
            DatabaseUnusable.
        """
        return await to_thread.run_sync(self._read, question, limiter=self._readers)

    @contextlib.contextmanager
    def following(self, evaluation_id: int, after: int) -> Iterator[Follower]:
        follower = Follower(evaluation_id, after)
        self._followers.add(follower)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def stream(self, follower: Follower) -> AsyncIterator[bytes]:
        """Yield the frames that a follower has not seen, until the evaluation is over."""
        until = time.monotonic() + LIFETIME
        told, next_progress = Progress(), time.monotonic()
        yield format_sse_event(retry=RETRY_SECONDS * 1000)
        while not self._stopping and time.monotonic() < until:
            follower.stirred.clear()
            if follower.newest != follower.seen:
                try:
                    page = await self.read(lambda session: read_events(session, follower.evaluation_id, follower.seen))
                except EvalsvcError as error:
                    log.warning("a stream of events waits for the database: %s", error)
                    await asyncio.sleep(LOOK_EVERY)
                    continue
                if page is None:
                    return  # deleted meanwhile, of which its client is told when it comes back
                for event in page.events:
                    yield _frame(event.kind, _data_of(event), event.number)
                    follower.seen = event.number
                if page.is_last:
                    yield _frame("end", {"evaluation": follower.evaluation_id, "state": page.state}, follower.seen)
                    return
                if follower.seen < page.newest:
                    continue
            if follower.progress != told and time.monotonic() >= next_progress:
                told, next_progress = follower.progress, time.monotonic() + PROGRESS_EVERY
                yield _frame("progress", {"evaluation": follower.evaluation_id, "tasks": told})
            if not await _stirred(follower):
                yield format_sse_event(comment="still here")

    def _read(self, question: Callable[[Session], T]) -> T:
        with self._state.reading() as session:
            return question(session)

    async def _look(self) -> None:
        """Poll the database until there is no stream."""
        try:
            while self._followers and not self._stopping:
                await asyncio.sleep(LOOK_EVERY)
                try:
                    await self._look_once()
                except EvalsvcError as error:
                    log.warning("events cannot be read: %s", error)
                except Exception:
                    log.exception("events could not be read; trying again")
        finally:
            self._looking = None

    async def _look_once(self) -> None:
        ids = {follower.evaluation_id for follower in self._followers}
        live = dict(self._state.coordinator.live())
        newest, progress = await self.read(lambda session: _look_at(session, ids, live))
        for follower in self._followers:
            # One that was deleted has none, and its streams find out for themselves.
            follower.newest = newest.get(follower.evaluation_id)
            follower.progress = progress.get(follower.evaluation_id, {})
            if follower.newest != follower.seen or follower.progress:
                follower.stirred.set()


class EventStream(Response):
    """The response that streams an evaluation's events as long as the client listens; refused if there are too many
    streams."""

    def __init__(self, followers: Followers, evaluation_id: int, after: int) -> None:
        super().__init__()
        self._followers = followers
        self._evaluation_id = evaluation_id
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the route: between that and this others come in.
        if len(self._followers) >= STREAMS:
            await _too_many()(scope, receive, send)
            return
        with self._followers.following(self._evaluation_id, self._after) as follower:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            stream = EventSourceResponse(self._followers.stream(follower), headers=headers)
            await stream(scope, receive, send)


def _too_many() -> Response:
    detail = (
        f"{STREAMS} streams of events are open already; try again in {BUSY_SECONDS} s, or ask "
        "GET /v1/evaluations/{id} now and then"
    )
    return problem(STATUS[RateLimited], RateLimited.code, detail, {"Retry-After": str(BUSY_SECONDS)})


async def _stirred(follower: Follower) -> bool:
    """Wait until there may be something to send; return False if nothing came for HEARTBEAT_EVERY seconds."""
    try:
        await asyncio.wait_for(follower.stirred.wait(), HEARTBEAT_EVERY)
    except TimeoutError:
        return False
    return True


def _look_at(
    session: Session, ids: set[int], live: Mapping[int, LiveTask]
) -> tuple[dict[int, int], dict[int, Progress]]:
    """Return the newest event of each followed evaluation, and the progress of their running tasks."""
    progress: dict[int, Progress] = {}
    for task in read_progress(session, live, ids) if live else ():
        now = live[task.id]
        shown = progress_view(task.finished + now.done, task.total, task.unit, now.per_second)
        progress.setdefault(task.evaluation_id, {})[task.name] = shown
    return newest_events(session, ids), progress


def _data_of(event: EvaluationEvent) -> dict[str, object]:
    """Return the fields of `EventData` that the event has."""
    at = event.created_at.isoformat(timespec="milliseconds")
    own = {"at": at, "task": event.task, "state": event.state}
    known = {name: value for name, value in own.items() if value is not None}
    return {"evaluation": event.evaluation_id, **known, **(event.data or {})}


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
    "description": "One of the stream; `data` is JSON, an object.",
}

Seen = Annotated[int, Query(ge=0, le=MAX_ID, description="The id of the last event that you have; begin after it.")]

SeenHeader = Annotated[
    int,
    Header(alias="Last-Event-ID", ge=0, le=MAX_ID, description="The same, as browsers send it when they come back."),
]


@router.get(
    "/{evaluation_id}/events",
    summary="Follow an evaluation",
    description="Server-sent events: `state` and `task` say to which state the evaluation or a task of it came, with "
    "the error of what failed and the warnings of a result; `interim` has what a task that goes on has found so far; "
    "`progress`, every two seconds at most, how far the tasks are that run; `end` is the last one, and then the stream "
    "ends. Events but `progress` have an id. A client that comes back with the last one that it has, also after "
    "the service was started anew, misses none. A stream that lasts long ends without `end`; come back likewise.",
    response_model=None,
    response_class=Response,
    responses={
        200: {"description": "The events.", "content": {"text/event-stream": {"schema": _EVENT, "example": _EXAMPLE}}},
        204: {"description": "It is over, and you have all: there is nothing to come back for."},
    },
)
async def get_events(
    evaluation_id: Id, request: Request, last_event_id: Seen = 0, last_event_id_header: SeenHeader = 0
) -> Response:
    followers: Followers = request.app.state.followers
    # A browser that comes back asks the address that it was given, and says in the header what is newer.
    seen = last_event_id_header or last_event_id
    page = await followers.read(lambda session: read_events(session, evaluation_id, seen))
    if page is None:
        raise UnknownName(f"there is no evaluation {evaluation_id}; GET /v1/evaluations lists the evaluations")
    if seen > page.newest:
        raise InvalidRequest(
            f"the last event of evaluation {evaluation_id} is {page.newest}, and you have {seen}, of another database; "
            "leave last_event_id out to get them all"
        )
    if seen and page.is_last and not page.events:
        return Response(status_code=204)
    return EventStream(followers, evaluation_id, seen)
