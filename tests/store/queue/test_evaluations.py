"""Cancelling and retrying: what was finished is kept, and what still runs disturbs nobody."""

from collections.abc import Callable

import pytest
from queue_steps import (
    at_once,
    begin,
    cancel,
    enter,
    evaluate_whole,
    metric,
    next_shard,
    ran,
    state,
    store_result,
    submission,
    suite,
)
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName, WrongState
from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.queue.attempts import Assignment, requeue_running
from evalsvc.store.queue.stages import cancel_evaluation, fail_checkpoint, retry_evaluation
from evalsvc.store.session import Store
from evalsvc.store.tables import Shard

DONE = ran(sum=1)
BROKEN = ShardResult(error=ShardError("non_finite", "NaN"))


def queue_again(store: Store) -> int:
    with store.transaction() as session:
        return requeue_running(session, {})


def retrying(evaluation: int) -> Callable[[Session], None]:
    return lambda session: retry_evaluation(session, evaluation)


def cancelling(evaluation: int) -> Callable[[Session], None]:
    return lambda session: cancel_evaluation(session, evaluation)


def shard_states(store: Store, *assignments: Assignment) -> list[str]:
    with store.reading() as session:
        return [session.get_one(Shard, assignment.shard_id).state for assignment in assignments]


def test_a_retry_and_the_end_of_what_was_cancelled_may_come_at_once(store: Store) -> None:
    """On PostgreSQL the end read `cancelled` before the retry was committed, and left its shard so: it never ended."""
    evaluation, [run, _] = begin(store)
    cancel(store, evaluation)
    stopped = ShardResult(error=ShardError("cancelled", "stopped"))
    assert at_once(store, retrying(evaluation), lambda: store_result(store, run, stopped)) is True
    assert shard_states(store, run) == ["queued"]


def test_a_retry_and_a_start_of_the_service_may_come_at_once(store: Store) -> None:
    """On PostgreSQL the start read `cancelled` before the retry was committed, and left so what had run: as above."""
    evaluation, runs = begin(store)
    cancel(store, evaluation)
    assert at_once(store, retrying(evaluation), lambda: queue_again(store)) == 2
    assert shard_states(store, *runs) == ["queued"] * 2


def test_what_is_cancelled_while_its_copy_fails_stays_so(store: Store) -> None:
    """On PostgreSQL the failure of the copy read `queued`, waited for the cancellation, and wrote over it."""
    [evaluation] = enter(store, submission(), suite())

    def fail() -> None:
        with store.transaction() as session:
            fail_checkpoint(session, 1, ShardError("checkpoint_gone", "it could not be copied"))

    at_once(store, cancelling(evaluation), fail)
    assert state(store, evaluation) == "cancelled"


def test_what_is_cancelled_while_it_is_dispatched_does_not_run(store: Store) -> None:
    """On PostgreSQL it was taken from before the cancellation, which its state then overwrote."""
    [evaluation] = enter(store, submission(), suite())
    assert at_once(store, cancelling(evaluation), lambda: next_shard(store)) is None
    assert state(store, evaluation) == "cancelled"


def test_what_is_over_cannot_be_cancelled_and_what_succeeded_cannot_be_retried(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite())
    with store.transaction() as session, pytest.raises(WrongState, match="is queued; only failed"):
        retry_evaluation(session, evaluation)
    evaluate_whole(store, metric(1.0))
    with store.transaction() as session, pytest.raises(WrongState, match="is succeeded; only queued and running"):
        cancel_evaluation(session, evaluation)
    with store.transaction() as session, pytest.raises(WrongState, match="is succeeded; only failed"):
        retry_evaluation(session, evaluation)
    with store.transaction() as session, pytest.raises(UnknownName, match="there is no evaluation 77"):
        cancel_evaluation(session, 77)
