"""The state machine of a shard, as one table, and what its effects write: outputs, back-offs, and counts of attempts.

The transaction that ends an attempt updates the counts for the service's Prometheus metrics. Counting rows would become
slower with each evaluation, and the counts would decrease with each deleted run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import uniform
from typing import TypeVar

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Session

from evalsvc.files.codec import Codec, Unreadable
from evalsvc.files.outputs import KeptOutput, OutputFile
from evalsvc.messages import KeptResult, LookResult, PlanResult, ShardError, ShardOutput, ShardResult, units_of
from evalsvc.store.history.writing import insert
from evalsvc.store.tables import OVER, Attempt, AttemptTotal, Shard, Task, now

Result = TypeVar("Result")

PLAN: Codec[PlanResult] = Codec(PlanResult)
LOOK: Codec[LookResult] = Codec(LookResult)
MERGE: Codec[KeptResult] = Codec(KeptResult)


def to_row(output: ShardOutput | None) -> KeptOutput | None:
    """Pack the output of a stage for the row of its shard."""
    if isinstance(output, PlanResult):
        return PLAN.pack(output)
    if isinstance(output, KeptResult):
        return MERGE.pack(output)
    return LOOK.pack(output) if isinstance(output, LookResult) else output


def from_row(codec: Codec[Result], stored: KeptOutput | None) -> Result:
    """Return the stored result of a plan, look or merge."""
    if stored is None or isinstance(stored, OutputFile):
        raise Unreadable(f"no {codec.name} in the row")
    return codec.unpack(stored)


FIRST_BACK_OFF, FACTOR, LONGEST_BACK_OFF = 2.0, 4.0, 300.0
"""Seconds of the first back-off, the growth factor of further back-offs, and the most seconds."""

JITTER = 0.25
"""The largest random extension of a back-off, as a share. Shards that failed together are not retried together."""


def wait_until(failures: int) -> datetime:
    """Return the time of the next attempt after this number of consecutive failures."""
    seconds = min(FIRST_BACK_OFF * FACTOR ** min(failures - 1, 10), LONGEST_BACK_OFF)
    return now() + timedelta(seconds=seconds * uniform(1, 1 + JITTER))


def is_due() -> ColumnElement[bool]:
    """Return the condition that a shard's back-off is over, or longer than possible after the clock was set back."""
    time = now()
    longest_wait_from_now = time + timedelta(seconds=LONGEST_BACK_OFF * (1 + JITTER))
    return or_(Shard.not_before.is_(None), Shard.not_before <= time, Shard.not_before > longest_wait_from_now)


SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Upper bounds of the buckets of durations; the last bucket has no bound. A change of the bounds needs a migration."""


def count_attempt(
    session: Session, *, kind: str, stage: str, outcome: str, code: str, seconds: float, units: int
) -> None:
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


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class Event(StrEnum):
    DISPATCH = "dispatch"
    """A free worker takes the shard."""
    SUCCEED = "succeed"
    """The attempt has a result."""
    FAIL = "fail"
    """The attempt has an error that a further attempt would have too."""
    BACK_OFF = "back off"
    """The attempt failed, and a further attempt may succeed."""
    EXHAUST = "exhaust"
    """The attempt failed, or the output was lost, as often as is allowed."""
    RELEASE = "release"
    """The attempt ended without a result, which does not count as a failure."""
    STOP = "stop"
    """The attempt ended, or the output was lost, in a task that was cancelled."""
    LOSE_OUTPUT = "lose output"
    """The file with the output is missing or damaged."""
    SKIP = "skip"
    """A look has shown that the task needs no further shard, or the merge came before the look."""
    CANCEL = "cancel"
    """The evaluation was cancelled."""
    RETRY = "retry"
    """The evaluation was retried by request."""


@dataclass(frozen=True)
class Cause:
    """What an event brings along."""

    outcome: str = "cancelled"
    """Outcome of the attempt, if the event ends an attempt."""
    error: ShardError | None = None
    result: ShardResult | None = None


Effect = Callable[[Session, Shard, Cause], None]


def begin_attempt(session: Session, shard: Shard, cause: Cause) -> None:
    shard.attempt += 1
    session.add(Attempt(shard_id=shard.id, number=shard.attempt))
    task, evaluation = shard.task, shard.task.evaluation
    task.state = "running"
    if evaluation.state == "queued":
        evaluation.state, evaluation.started_at = "running", evaluation.started_at or now()


def end_attempt(session: Session, shard: Shard, cause: Cause) -> None:
    attempt = session.get(Attempt, (shard.id, shard.attempt))
    if attempt is not None:
        attempt.finished_at, attempt.outcome = now(), cause.outcome
        succeeded = cause.outcome == "succeeded" and shard.stage == "run"
        count_attempt(
            session,
            kind=shard.task.kind,
            stage=shard.stage,
            outcome=cause.outcome,
            code="" if cause.error is None else cause.error.code,
            seconds=(attempt.finished_at - attempt.started_at).total_seconds(),
            units=units_of(shard.payload) if shard.payload and succeeded else 0,
        )
    if cause.result is not None:
        shard.provenance = dict(cause.result.provenance)


def keep_output(session: Session, shard: Shard, cause: Cause) -> None:
    assert cause.result is not None, "an attempt that succeeds has a result"
    shard.output, shard.error, shard.not_before = to_row(cause.result.output), None, None
    if shard.stage == "run":
        shard.units = units_of(shard.payload or {})


def drop_output(session: Session, shard: Shard, cause: Cause) -> None:
    shard.output, shard.units = None, None


def keep_error(session: Session, shard: Shard, cause: Cause) -> None:
    if cause.error is not None:
        shard.error = cause.error.to_json()


def count_failure(session: Session, shard: Shard, cause: Cause) -> None:
    shard.failed_attempts += 1


def delay(session: Session, shard: Shard, cause: Cause) -> None:
    # The first retry after the death of a worker has no back-off: the shard is rarely the cause.
    failures = shard.failed_attempts - (cause.outcome != "failed")
    shard.not_before = wait_until(failures) if failures else None


def fail_its_task(session: Session, shard: Shard, cause: Cause) -> None:
    """Fail the task, unless the shard is a look, which the task does without."""
    assert cause.error is not None, "a shard fails with an error"
    if shard.stage != "look":
        fail_task(shard.task, cause.error)


def forget_failures(session: Session, shard: Shard, cause: Cause) -> None:
    shard.error, shard.failed_attempts, shard.not_before = None, 0, None


QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED, SKIPPED = State

TABLE: Mapping[tuple[str, Event], tuple[State, tuple[Effect, ...]]] = {
    (QUEUED, Event.DISPATCH): (RUNNING, (begin_attempt,)),
    (RUNNING, Event.SUCCEED): (SUCCEEDED, (end_attempt, keep_output)),
    (RUNNING, Event.FAIL): (FAILED, (end_attempt, keep_error, fail_its_task)),
    (RUNNING, Event.BACK_OFF): (QUEUED, (end_attempt, keep_error, count_failure, delay)),
    (RUNNING, Event.EXHAUST): (FAILED, (end_attempt, keep_error, count_failure, fail_its_task)),
    (RUNNING, Event.RELEASE): (QUEUED, (end_attempt,)),
    (RUNNING, Event.STOP): (CANCELLED, (end_attempt, keep_error)),
    (SUCCEEDED, Event.LOSE_OUTPUT): (QUEUED, (drop_output, count_failure)),
    (SUCCEEDED, Event.EXHAUST): (FAILED, (drop_output, keep_error, count_failure, fail_its_task)),
    (SUCCEEDED, Event.STOP): (CANCELLED, (drop_output,)),
    # The coordinator stops a running attempt that is skipped, and its result is discarded.
    (QUEUED, Event.SKIP): (SKIPPED, ()),
    (RUNNING, Event.SKIP): (SKIPPED, (end_attempt,)),
    (SUCCEEDED, Event.SKIP): (SKIPPED, (drop_output,)),
    (FAILED, Event.SKIP): (SKIPPED, ()),
    (SKIPPED, Event.SKIP): (SKIPPED, ()),
    # A running attempt goes on until the coordinator stops it. What has succeeded is kept for a retry.
    (QUEUED, Event.CANCEL): (CANCELLED, ()),
    (RUNNING, Event.CANCEL): (RUNNING, ()),
    (SUCCEEDED, Event.CANCEL): (SUCCEEDED, ()),
    (FAILED, Event.CANCEL): (FAILED, ()),
    (SKIPPED, Event.CANCEL): (SKIPPED, ()),
    (CANCELLED, Event.CANCEL): (CANCELLED, ()),
    (QUEUED, Event.RETRY): (QUEUED, ()),
    (RUNNING, Event.RETRY): (RUNNING, ()),
    (SUCCEEDED, Event.RETRY): (SUCCEEDED, ()),
    (FAILED, Event.RETRY): (QUEUED, (forget_failures,)),
    (CANCELLED, Event.RETRY): (QUEUED, (forget_failures,)),
    (SKIPPED, Event.RETRY): (SKIPPED, ()),
}
"""The next state and the effects, in order, of an event by state. Other events are refused: they would lose an attempt
or run a shard twice."""


def apply(session: Session, shard: Shard, event: Event, cause: Cause = Cause()) -> None:
    """Change a shard by an event; raise ValueError if the shard's state does not know the event."""
    if (shard.state, event) not in TABLE:
        raise ValueError(f"shard {shard.id} is {shard.state}, in which {event.value!r} cannot happen")
    state, effects = TABLE[shard.state, event]
    for effect in effects:
        effect(session, shard, cause)
    # Last, since an effect may flush: an event of the new state is noted with the output and the error.
    shard.state = state.value


def fail_task(task: Task, error: ShardError) -> None:
    """Mark a task as failed with its first error. Its queued shards are not dispatched before a retry."""
    if task.state not in OVER:
        task.state, task.error = "failed", error.to_json()
