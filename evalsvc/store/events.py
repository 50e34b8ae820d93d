"""Events of evaluations: changes of state and interim results, in the order of the changes.

The transaction that makes a change also writes the event, and numbers the event within its evaluation. The number comes
from the evaluation's row, which stays locked until the transaction ends. A client that has event n therefore has all
events up to n, and a client that reconnects with its last number misses no event, even after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby

from sqlalchemy import Connection, func, insert, inspect, select, update
from sqlalchemy.orm import InstanceState, Session

from evalsvc.spec.documents.evaluations import EventKind
from evalsvc.spec.documents.fields import State
from evalsvc.store.queue.transitions import LOOK, from_row
from evalsvc.store.tables import OVER, Evaluation, EvaluationEvent, Shard, Task, now

PAGE = 100
"""The most events on a page."""


@dataclass(frozen=True)
class Page:
    events: list[EvaluationEvent]
    newest: int
    """The number of the evaluation's newest event."""
    state: State

    @property
    def is_last(self) -> bool:
        """Whether this is the last page, unless the evaluation is retried."""
        seen = self.events[-1].number if self.events else self.newest
        return self.state in OVER and seen == self.newest


def read_events(session: Session, evaluation_id: int, after: int) -> Page | None:
    """Return the events after a number, at most `PAGE`; None if there is no such evaluation."""
    row = session.execute(
        select(Evaluation.event_count, Evaluation.state).where(Evaluation.id == evaluation_id)
    ).one_or_none()
    if row is None:
        return None
    # Read the events after the count: without a common snapshot there may be more events than `newest`, never fewer.
    events = session.scalars(
        select(EvaluationEvent)
        .where(EvaluationEvent.evaluation_id == evaluation_id, EvaluationEvent.number > after)
        .order_by(EvaluationEvent.number)
        .limit(PAGE)
    )
    return Page(list(events), row.event_count, row.state)


def newest_events(session: Session, evaluation_ids: Iterable[int]) -> dict[int, int]:
    """Return the number of the newest event of each existing evaluation."""
    counts = select(Evaluation.id, Evaluation.event_count).where(Evaluation.id.in_(sorted(evaluation_ids)))
    return {row.id: row.event_count for row in session.execute(counts)}


@dataclass(frozen=True)
class TaskProgress:
    """Progress of a running task, without the work of running shards."""

    id: int
    evaluation_id: int
    name: str
    total: int | None
    unit: str | None
    finished: int


def read_progress(session: Session, task_ids: Iterable[int], evaluation_ids: Iterable[int]) -> list[TaskProgress]:
    """Return the progress of the tasks that are running, among the given tasks of the given evaluations."""
    rows = session.execute(
        select(Task.id, Task.evaluation_id, Task.name, Task.total, Task.unit, func.coalesce(func.sum(Shard.units), 0))
        .join(Shard, Shard.task_id == Task.id)
        .where(Task.id.in_(sorted(task_ids)), Task.evaluation_id.in_(sorted(evaluation_ids)), Task.state == "running")
        .group_by(Task.id)
        .order_by(Task.evaluation_id, Task.index)
    )
    return [TaskProgress(*row) for row in rows]  # type: ignore[arg-type] # the sum is not None


@dataclass(frozen=True)
class _Change:
    """An event without a number."""

    evaluation_id: int
    kind: EventKind
    task: str | None = None
    state: State | None = None
    data: Mapping[str, object] | None = None
    index: int = 0
    """The position of the task in its evaluation."""

    def place(self) -> tuple[int, int, int, str]:
        if self.kind == "state":
            return self.evaluation_id, 2 if self.state in OVER else 0, 0, ""
        return self.evaluation_id, 1, self.index, self.kind


def note_events(session: Session, _context: object) -> None:
    """Write the events of a flush: changed states, and interim results of looks. The final state of an evaluation comes
    after the states of its tasks, any other state before them, and interim results before task states."""
    connection = session.connection()
    changes = [change for item in (*session.new, *session.dirty) for change in _changes_of(connection, item)]
    for evaluation, group in groupby(sorted(changes, key=_Change.place), lambda change: change.evaluation_id):
        new = list(group)
        count = update(Evaluation).where(Evaluation.id == evaluation)
        count = count.values(event_count=Evaluation.event_count + len(new))
        newest = connection.execute(count.returning(Evaluation.event_count)).scalar_one()
        rows = [
            {"evaluation_id": evaluation, "number": number, "created_at": now()}
            | {name: getattr(change, name) for name in ("kind", "task", "state", "data")}
            for number, change in enumerate(new, newest - len(new) + 1)
        ]
        connection.execute(insert(EvaluationEvent.__table__), rows)  # type: ignore[arg-type]


def _changes_of(connection: Connection, item: object) -> list[_Change]:
    if not isinstance(item, (Evaluation, Task, Shard)):
        return []
    row: InstanceState[Evaluation | Task | Shard] = inspect(item)
    is_new = not row.persistent
    if not row.attrs.state.history.has_changes() and not (is_new and isinstance(item, Evaluation)):
        return []
    data: dict[str, object] | None = None
    if isinstance(item, (Evaluation, Task)) and item.error is not None:
        data = {"error": item.error}
    if isinstance(item, Evaluation):
        return [_Change(item.id, "state", state=item.state, data=data)]
    if isinstance(item, Task):
        if data is None and item.state == "succeeded" and item.warnings:
            data = {"warnings": item.warnings}
        return [] if is_new else [_Change(item.evaluation_id, "task", item.name, item.state, data, item.index)]
    if item.stage != "look" or item.state != "succeeded" or item.output is None:
        return []
    query = select(Task.evaluation_id, Task.name, Task.index).where(Task.id == item.task_id)
    evaluation, name, index = connection.execute(query).one()
    result = {"done": (item.payload or {})["done"], **asdict(from_row(LOOK, item.output))}
    return [_Change(evaluation, "interim", name, data=result, index=index)]
