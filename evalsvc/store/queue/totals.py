"""Counts for the service's Prometheus metrics: the depth of the queue, and all ended attempts.

The transaction that ends an attempt updates the counts. Counting rows would become slower with each evaluation, and the
counts would decrease with each deleted run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.store.history.writing import insert
from evalsvc.store.tables import AttemptTotal, Evaluation, Shard, Task, now

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Upper bounds of the buckets of durations; the last bucket has no bound. A change of the bounds needs a migration."""


def count_attempt(
    session: Session, *, kind: str, stage: str, outcome: str, code: str, seconds: float, units: int
) -> None:
    """Count an ended attempt. The parameters are columns of `AttemptTotal`."""
    # The duration is negative if the clock was set back.
    seconds = max(0.0, seconds)
    key = {"kind": kind, "stage": stage, "outcome": outcome, "code": code, "bucket": bisect_left(SECONDS, seconds)}
    row = key | {"attempts": 1, "seconds": seconds, "units": units}
    statement = insert(session, AttemptTotal).values(row)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=list(key),
            set_={name: getattr(AttemptTotal, name) + statement.excluded[name] for name in row.keys() - key.keys()},
        )
    )


@dataclass(frozen=True)
class Depths:
    """The numbers of evaluations and shards in the queue."""

    evaluations: dict[str, int]
    """The number of evaluations by state."""
    shards: dict[str, int]
    """The number of queued and running shards by state."""
    oldest_seconds: float
    """The age of the oldest evaluation with a queued shard, in seconds; 0 without such an evaluation."""


def read_depths(session: Session) -> Depths:
    evaluations = select(Evaluation.state, func.count()).group_by(Evaluation.state)
    states = ("queued", "running")
    shards = select(Shard.state, func.count()).where(Shard.state.in_(states)).group_by(Shard.state)
    waits = select(Shard.id).join(Task).where(Task.evaluation_id == Evaluation.id, Shard.state == "queued").exists()
    # Ids grow with time, so the query stops at the first row in the order of ids, which is the oldest.
    oldest = session.scalar(
        select(Evaluation.created_at).where(Evaluation.state.in_(states), waits).order_by(Evaluation.id).limit(1)
    )
    return Depths(
        evaluations={state: number for state, number in session.execute(evaluations)},  # noqa: C416
        shards=dict.fromkeys(states, 0) | {state: number for state, number in session.execute(shards)},  # noqa: C416
        oldest_seconds=0.0 if oldest is None else max(0.0, (now() - oldest).total_seconds()),
    )


def read_totals(session: Session) -> list[AttemptTotal]:
    return list(session.scalars(select(AttemptTotal)))


def kinds_of(session: Session, task_ids: Iterable[int]) -> dict[int, str]:
    rows = session.execute(select(Task.id, Task.kind).where(Task.id.in_(sorted(task_ids))))
    return {task: kind for task, kind in rows}  # noqa: C416
