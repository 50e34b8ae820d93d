"""What happens to an evaluation, for those who follow it: changes of state and interim results, in their order.

Events are written in the transaction that makes the change, numbered per evaluation. The number comes from the
evaluation's own row, which is locked from then on: so whoever has seen number n has seen all up to n, and a follower
that comes back with the last number that it saw misses none, whatever was restarted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby

from sqlalchemy import Connection, func, insert, inspect, select, update
from sqlalchemy.orm import InstanceState, Session

from evalsvc.spec.documents.events import EventKind
from evalsvc.spec.documents.fields import State
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
    state: State

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


@dataclass(frozen=True)
class _Change:
    """An event that has no number yet."""

    evaluation_id: int
    kind: EventKind
    task: str | None = None
    state: State | None = None
    data: Mapping[str, object] | None = None
    index: int = 0
    """Place of the task in its evaluation."""

    def place(self) -> tuple[int, int, int, str]:
        """By evaluation; interim results before the state of their task, and the end of an evaluation last."""
        if self.kind == "state":
            return self.evaluation_id, 2 if self.state in OVER else 0, 0, ""
        return self.evaluation_id, 1, self.index, self.kind


def note_events(session: Session, _context: object) -> None:
    """After a flush: write down the states that it changed, and what looks found.

    An evaluation's end comes after what its tasks came to, and every other state of it before.
    """
    connection = session.connection()
    found = [change for item in (*session.new, *session.dirty) for change in _changes_of(connection, item)]
    for evaluation, changes in groupby(sorted(found, key=_Change.place), lambda change: change.evaluation_id):
        _write(connection, evaluation, list(changes))


def _changes_of(connection: Connection, item: object) -> list[_Change]:
    if not isinstance(item, (Evaluation, Task, Shard)):
        return []
    row: InstanceState[Evaluation | Task | Shard] = inspect(item)
    is_new = not row.persistent
    if not row.attrs.state.history.has_changes() and not (is_new and isinstance(item, Evaluation)):
        return []
    if isinstance(item, Evaluation):
        return [_Change(item.id, "state", state=item.state, data=_error(item))]
    if isinstance(item, Task):
        change = _Change(item.evaluation_id, "task", item.name, item.state, _findings(item), item.index)
        return [] if is_new else [change]
    if item.stage != "look" or item.state != "succeeded" or item.output is None:
        return []
    query = select(Task.evaluation_id, Task.name, Task.index).where(Task.id == item.task_id)
    evaluation, name, index = connection.execute(query).one()
    found = {"done": (item.payload or {})["done"], **asdict(from_row(LOOK, item.output))}
    return [_Change(evaluation, "interim", name, data=found, index=index)]


def _error(item: Evaluation | Task) -> dict[str, object] | None:
    return None if item.error is None else {"error": item.error}


def _findings(task: Task) -> dict[str, object] | None:
    """Why a task has failed, or what is suspicious about its result."""
    return _error(task) or ({"warnings": task.warnings} if task.state == "succeeded" and task.warnings else None)


def _write(connection: Connection, evaluation: int, changes: list[_Change]) -> None:
    newest = connection.execute(
        update(Evaluation)
        .where(Evaluation.id == evaluation)
        .values(event_count=Evaluation.event_count + len(changes))
        .returning(Evaluation.event_count)
    ).scalar_one()
    rows = [
        {
            "evaluation_id": evaluation,
            "number": number,
            "kind": change.kind,
            "task": change.task,
            "state": change.state,
            "data": None if change.data is None else dict(change.data),
            "created_at": now(),
        }
        for number, change in enumerate(changes, newest - len(changes) + 1)
    ]
    connection.execute(insert(EvaluationEvent.__table__), rows)  # type: ignore[arg-type]
