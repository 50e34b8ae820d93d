"""Which shard is next: the order of the queue.

Highest priority first. Between runs, the one with the fewest shards on workers; where that is equal, one whose
checkpoint a free worker has loaded, then the one that has waited longest for its turn. Within a run, what was begun is
finished before anything else is begun, else a run that posts faster than it is evaluated would have no result at all;
then the newest checkpoint comes first. A look comes before the shards that run: it may say that they are not needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Row, and_, case, func, or_, select
from sqlalchemy.orm import Session, joinedload

from evalsvc.store.queue.back_off import is_due
from evalsvc.store.runs.base import awaiting_parents, runs_awaiting_base
from evalsvc.store.tables import Checkpoint, Evaluation, Shard, Task


@dataclass(frozen=True)
class WorkerState:
    """What the order depends on beside the queue."""

    loaded: frozenset[int] = frozenset()
    """Ids of the checkpoints that free workers have loaded."""
    busy: Mapping[int, int] = field(default_factory=dict)
    """Shards on workers, by run id."""
    turns: Mapping[int, float] = field(default_factory=dict)
    """When a run last had an evaluation begun, by run id; by any clock that only grows."""


def next_shard(session: Session, worker_state: WorkerState) -> Shard | None:
    """The shard to dispatch next; None when nothing waits. Takes milliseconds with 10,000 evaluations in the queue."""
    passed: set[int] = set()
    while rows := _first_of_each_run(session, worker_state.loaded, passed):
        best = min(rows, key=lambda row: _rank(row, worker_state))
        shard = _first_shard(session, best.evaluation_id)
        if shard is not None:
            return shard
        # A worker still has its only shard, from before a retry; or all of them wait to be tried again.
        passed.add(best.evaluation_id)
    return None


def _rank(row: Row[tuple[int, ...]], worker_state: WorkerState) -> tuple[float, ...]:
    return (
        -row.priority,
        worker_state.busy.get(row.run_id, 0),
        row.checkpoint_id not in worker_state.loaded,
        worker_state.turns.get(row.run_id, float("-inf")),
        row.oldest,
    )


def _first_of_each_run(session: Session, loaded: frozenset[int], passed: Collection[int]) -> list[Row[tuple[int, ...]]]:
    """The evaluation that comes first in each run, with the oldest one there.

    What was begun is looked up first, by its shards: it is little. Of what only waits nothing but the evaluation and
    its checkpoint is read, since a join with the shards of all would take seconds where a database plans it badly.
    """
    waiting_shard = select(Shard.id).join(Task).where(Task.evaluation_id == Evaluation.id, _is_waiting()).exists()
    running = session.scalars(select(Evaluation.id).where(Evaluation.state == "running", waiting_shard)).all()
    begun = Evaluation.started_at.is_not(None)
    within = (
        Evaluation.priority.desc(),
        case((and_(begun, Checkpoint.id.in_(loaded)), 0), (begun, 1), else_=2),
        Evaluation.started_at,
        Checkpoint.step.desc(),
        Evaluation.id,
    )
    ranked = (
        select(
            Evaluation.id.label("evaluation_id"),
            Checkpoint.id.label("checkpoint_id"),
            Checkpoint.run_id,
            Evaluation.priority,
            func.min(Evaluation.id).over(partition_by=Checkpoint.run_id).label("oldest"),
            func.row_number().over(partition_by=Checkpoint.run_id, order_by=within).label("place"),
        )
        .join(Checkpoint)
        .where(
            or_(Evaluation.state == "queued", Evaluation.id.in_(running)),
            Evaluation.id.not_in(passed),
            Checkpoint.spool_state.is_distinct_from("copying"),
            Checkpoint.id.not_in(awaiting_parents()),
            Checkpoint.run_id.not_in(runs_awaiting_base(session)),
        )
    ).subquery()
    return list(session.execute(select(ranked).where(ranked.c.place == 1)).all())


def _first_shard(session: Session, evaluation_id: int) -> Shard | None:
    """The shard of an evaluation that comes first; None where none may be dispatched."""
    # The ids alone are put in order: with all that is read of the first one, a thousand shards are a large table.
    first = (
        select(Shard.id)
        .join(Task)
        .where(Task.evaluation_id == evaluation_id, _is_waiting())
        .order_by(Task.index, Shard.stage == "run", Shard.id)
        .limit(1)
    )
    to_checkpoint = joinedload(Shard.task).joinedload(Task.evaluation).joinedload(Evaluation.checkpoint)
    return session.scalar(
        select(Shard).options(to_checkpoint.joinedload(Checkpoint.run)).where(Shard.id == first.scalar_subquery())
    )


def _is_waiting() -> ColumnElement[bool]:
    """The condition on a shard with its task that it may be dispatched, for all that its checkpoint says."""
    return and_(Shard.state == "queued", is_due(), Task.state.in_(("queued", "running")))
