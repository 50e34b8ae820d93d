"""What happens to an evaluation, for those who follow it: changes of state and interim results, in their order.

Events are written in the transaction that makes the change, numbered per evaluation. The number comes from the
evaluation's own row, which is locked from then on: so whoever has seen number n has seen all up to n, and a follower
that comes back with the last number that it saw misses none, whatever was restarted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, inspect, select, update
from sqlalchemy.orm import InstanceState, Session

from evalsvc.store.queue.stage_results import LOOK, from_row
from evalsvc.store.tables import OVER, Evaluation, EvaluationEvent, Shard, Task, now

PAGE = 100
"""Events that are read at once."""


@dataclass(frozen=True)
class Page:
    """Events of an evaluation after a number."""

    events: list[EvaluationEvent]
    newest: int
    """Number of the evaluation's newest event."""
    state: str

    @property
    def is_last(self) -> bool:
        """Nothing follows, unless the evaluation is retried."""
        seen = self.events[-1].number if self.events else self.newest
        return self.state in OVER and seen == self.newest


def read_events(session: Session, evaluation_id: int, after: int) -> Page | None:
    """The events after a number, at most `PAGE` of them; None where there is no such evaluation."""
    row = session.execute(
        select(Evaluation.event_count, Evaluation.state).where(Evaluation.id == evaluation_id)
    ).one_or_none()
    if row is None:
        return None
    # Read second: where the two are not on one snapshot there may be more events than `newest` says, never fewer.
    events = session.scalars(
        select(EvaluationEvent)
        .where(EvaluationEvent.evaluation_id == evaluation_id, EvaluationEvent.number > after)
        .order_by(EvaluationEvent.number)
        .limit(PAGE)
    )
    return Page(list(events), row.event_count, row.state)


def newest_events(session: Session, evaluation_ids: Iterable[int]) -> dict[int, int]:
    """The number of each evaluation's newest event, of those that are there."""
    rows = session.execute(
        select(Evaluation.id, Evaluation.event_count).where(Evaluation.id.in_(sorted(evaluation_ids)))
    )
    return {row.id: row.event_count for row in rows}


@dataclass(frozen=True)
class TaskProgress:
    """How far a task is that runs, without what is done in the shards that run."""

    id: int
    evaluation_id: int
    name: str
    total: int | None
    unit: str | None
    finished: int


def read_progress(session: Session, task_ids: Iterable[int], evaluation_ids: Iterable[int]) -> list[TaskProgress]:
    """Of these tasks, those that belong to these evaluations and run."""
    rows = session.execute(
        select(Task.id, Task.evaluation_id, Task.name, Task.total, Task.unit, func.sum(Shard.units))
        .join(Shard, Shard.task_id == Task.id)
        .where(Task.id.in_(sorted(task_ids)), Task.evaluation_id.in_(sorted(evaluation_ids)), Task.state == "running")
        .group_by(Task.id)
        .order_by(Task.evaluation_id, Task.index)
    )
    return [
        TaskProgress(task, evaluation, name, total, unit, finished or 0)
        for task, evaluation, name, total, unit, finished in rows
    ]


def note_events(session: Session, _context: Any) -> None:
    """After a flush: write down the states that it changed, and what looks found.

    An evaluation's end comes after what its tasks came to, and every other state of it before.
    """
    connection = session.connection()
    found = [event for item in (*session.new, *session.dirty) for event in _events_of(connection, item)]
    by_evaluation: dict[int, list[dict[str, Any]]] = {}
    for event in sorted(found, key=_place):
        by_evaluation.setdefault(event["evaluation_id"], []).append(event)
    for evaluation, events in sorted(by_evaluation.items()):
        _write(connection, evaluation, events)


def _events_of(connection: Connection, item: object) -> list[dict[str, Any]]:
    if not isinstance(item, (Evaluation, Task, Shard)):
        return []
    row: InstanceState[Any] = inspect(item)
    is_new = not row.persistent
    if not row.attrs.state.history.has_changes() and not (is_new and isinstance(item, Evaluation)):
        return []
    if isinstance(item, Evaluation):
        return [_event(item.id, "state", state=item.state, data=_error(item))]
    if isinstance(item, Task):
        found = _findings(item)
        return [] if is_new else [_event(item.evaluation_id, "task", item.name, item.state, found, item.index)]
    if item.stage != "look" or item.state != "succeeded" or item.output is None:
        return []
    query = select(Task.evaluation_id, Task.name, Task.index).where(Task.id == item.task_id)
    evaluation, name, index = connection.execute(query).one()
    found = {"done": (item.payload or {})["done"], **asdict(from_row(LOOK, item.output))}
    return [_event(evaluation, "interim", name, data=found, index=index)]


def _error(item: Evaluation | Task) -> dict[str, Any] | None:
    return None if item.error is None else {"error": item.error}


def _findings(task: Task) -> dict[str, Any] | None:
    """Why a task has failed, or what is suspicious about its result."""
    return _error(task) or ({"warnings": task.warnings} if task.state == "succeeded" and task.warnings else None)


def _event(
    evaluation_id: int,
    kind: str,
    task: str | None = None,
    state: str | None = None,
    data: Mapping[str, Any] | None = None,
    index: int = 0,
) -> dict[str, Any]:
    event = {"evaluation_id": evaluation_id, "kind": kind, "task": task, "state": state}
    return event | {"data": None if data is None else dict(data), "index": index}


def _place(event: Mapping[str, Any]) -> tuple[int, int, str]:
    """Interim results come before the state of their task."""
    if event["kind"] == "state":
        return (2 if event["state"] in OVER else 0), 0, ""
    return 1, event["index"], event["kind"]


def _write(connection: Connection, evaluation: int, events: list[dict[str, Any]]) -> None:
    newest = connection.execute(
        update(Evaluation)
        .where(Evaluation.id == evaluation)
        .values(event_count=Evaluation.event_count + len(events))
        .returning(Evaluation.event_count)
    ).scalar_one()
    rows = [
        {name: value for name, value in event.items() if name != "index"} | {"number": number, "created_at": now()}
        for number, event in enumerate(events, newest - len(events) + 1)
    ]
    connection.execute(insert(EvaluationEvent.__table__), rows)  # type: ignore[arg-type]
