"""Cancelling and retrying: what was finished is kept, and what still runs disturbs nobody."""

from collections.abc import Callable

import pytest
from queue_steps import (
    at_once,
    begin,
    cancel,
    dispatched,
    enter,
    evaluate_whole,
    metric,
    next_shard,
    plan,
    ran,
    result,
    retry,
    state,
    store_result,
    submission,
    suite,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName, WrongState
from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.queue.evaluations import cancel_evaluation, retry_evaluation
from evalsvc.store.queue.shards import Assignment, fail_checkpoint, give_up, requeue_running
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


@pytest.mark.parametrize("early", [True, False])
def test_what_is_retried_before_it_has_stopped_runs_again(store: Store, early: bool) -> None:
    """The attempt that had been told to stop left its shard cancelled in an evaluation that ran: it never ended."""
    evaluation, [run, other] = begin(store)
    cancel(store, evaluation)
    retry(store, evaluation)
    if early:  # it was told before it had begun
        with store.transaction() as session:
            give_up(session, run, "cancelled", None, max_attempts=3)
    else:
        store_result(store, run, ShardResult(error=ShardError("cancelled", "the evaluation was cancelled")))
    again = dispatched(store)
    assert (again.shard_id, again.attempt) == (run.shard_id, 2)
    for assignment in (again, other):
        assert store_result(store, assignment, DONE) is True
    evaluate_whole(store, metric(1.5))
    assert state(store, evaluation) == "succeeded"


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


def test_a_failed_task_leaves_the_others_and_the_retry_keeps_what_is_finished(store: Store) -> None:
    evaluation, [first, second] = begin(store, tasks=2)
    store_result(store, first, DONE)
    store_result(store, second, BROKEN)
    evaluate_whole(store, metric(2.0))
    assert state(store, evaluation) == "partly_failed"
    retry(store, evaluation)
    again = dispatched(store)
    assert again.shard_id == second.shard_id
    store_result(store, again, DONE)
    evaluate_whole(store, metric(3.0))
    assert state(store, evaluation) == "succeeded"
    with store.reading() as session:
        attempts = {shard.id: shard.attempt for shard in session.scalars(select(Shard).where(Shard.stage == "run"))}
    assert attempts[first.shard_id] == 1
    assert attempts[second.shard_id] == 2


def test_cancelling_keeps_what_was_finished_for_a_retry(store: Store) -> None:
    evaluation, [first, second] = begin(store)
    store_result(store, first, DONE)
    cancel(store, evaluation)
    assert state(store, evaluation) == "cancelled"
    assert next_shard(store) is None
    store_result(store, second, ShardResult(error=ShardError("cancelled", "stopped")))
    retry(store, evaluation)
    again = dispatched(store)
    assert again.shard_id == second.shard_id
    store_result(store, again, DONE)
    evaluate_whole(store, metric(1.0))
    assert state(store, evaluation) == "succeeded"


def test_cancelling_during_the_last_shard_of_a_stage_can_be_retried(store: Store) -> None:
    """The result that came after the cancellation had no successor, and the retry waited for ever."""
    [evaluation] = enter(store, submission(), suite())
    planning = dispatched(store)
    cancel(store, evaluation)
    store_result(store, planning, plan(1))
    retry(store, evaluation)
    evaluate_whole(store, metric(1.0))
    assert state(store, evaluation) == "succeeded"


def test_cancelling_during_the_merge_of_one_task_leaves_the_others_to_the_retry(store: Store) -> None:
    """The retry stored the merge's result, found the other task still cancelled, and ended the evaluation."""
    [evaluation] = enter(store, submission(), suite(tasks=2))
    while (assignment := dispatched(store)).request.stage != "merge":
        store_result(store, assignment, plan(1) if assignment.request.stage == "plan" else DONE)
    cancel(store, evaluation)
    store_result(store, assignment, result(metric(1.0)))
    retry(store, evaluation)
    assert state(store, evaluation) == "queued"
    evaluate_whole(store, metric(1.0))
    assert state(store, evaluation) == "succeeded"


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
