"""The state machine of a shard: what an event does to a shard in each state, as one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.orm import Session

from evalsvc.messages import ShardError, ShardResult, units_of
from evalsvc.store.queue.back_off import wait_until
from evalsvc.store.queue.stage_results import to_row
from evalsvc.store.queue.totals import count_attempt
from evalsvc.store.tables import OVER, Attempt, Shard, Task, now


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
