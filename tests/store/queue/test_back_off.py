"""What may pass is tried again later, and a clock that jumps delays nothing for long."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from queue_steps import begin, dispatched, lose, next_shard, ran, retry, state, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue import transitions
from evalsvc.store.queue.attempts import Assignment, finish
from evalsvc.store.session import Store
from evalsvc.store.tables import Shard

FULL = ShardError("artifact_not_written", "no space left on device; make room")
BROKEN = ShardError("non_finite", "NaN in layer 3")

SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets the clock of back-off to so many seconds after the test's beginning."""
    begun, seconds = datetime(2026, 5, 4, tzinfo=UTC), 0.0

    def set_clock(value: float) -> None:
        nonlocal seconds
        seconds = value

    monkeypatch.setattr(transitions, "now", lambda: begun + timedelta(seconds=seconds))
    return set_clock


def fail(store: Store, assignment: Assignment, error: ShardError) -> None:
    with store.transaction() as session:
        assert finish(session, assignment, ShardResult(error=error), max_attempts=3)


def test_what_may_pass_waits_longer_each_time_and_fails_in_the_end(store: Store, set_clock: SetClock) -> None:
    """A disk that was full for a second failed an evaluation of hours."""
    _, [shard] = begin(store, shards=1)
    for now, early, due in ((0.0, 1.9, 2.6), (100.0, 107.9, 110.1)):
        set_clock(now)
        fail(store, shard, FULL)
        set_clock(early)
        assert next_shard(store) is None
        assert state(store, 1) == "running"
        set_clock(due)
        again = dispatched(store)
        assert (again.shard_id, again.attempt) == (shard.shard_id, shard.attempt + 1)
        shard = again
    fail(store, shard, FULL)
    assert next_shard(store) is None
    assert state(store, 1) == "failed"
    with store.reading() as session:
        error = find_evaluation(session, 1).error
    assert error == {"code": FULL.code, "message": f"{FULL.message} (tried 3 times)"}
    retry(store, 1)
    assert next_shard(store) is not None, "whoever asks for a retry need not wait"


def test_what_cannot_pass_fails_at_once(store: Store) -> None:
    fail(store, begin(store, shards=1)[1][0], BROKEN)
    assert state(store, 1) == "failed"
    assert next_shard(store) is None
    with store.reading() as session:
        assert find_evaluation(session, 1).error == BROKEN.to_json()


def test_a_lost_worker_is_replaced_at_once_and_then_waited_for(store: Store, set_clock: SetClock) -> None:
    set_clock(0)
    _, [shard] = begin(store, shards=1)
    for expected_wait in (0.0, 2.0):
        lose(store, shard, max_attempts=5)
        if expected_wait:
            assert next_shard(store) is None
            set_clock(expected_wait * 1.3)
        shard = dispatched(store)


@pytest.mark.parametrize("jump", [-3_600.0, -86_400.0 * 400, 3_600.0])
def test_a_clock_that_jumps_delays_no_shard(store: Store, set_clock: SetClock, jump: float) -> None:
    """Set back by an hour, it would have waited for an hour."""
    set_clock(0)
    fail(store, begin(store, shards=1)[1][0], FULL)
    assert next_shard(store) is None
    set_clock(jump)
    assert next_shard(store) is not None


def test_a_wait_is_bounded(set_clock: SetClock) -> None:
    set_clock(0)
    begun = transitions.now()
    waits = [(transitions.wait_until(failures) - begun).total_seconds() for failures in (1, 2, 3, 4, 5, 1_000_000)]
    for wait, nominal in zip(waits, (2, 8, 32, 128, 300, 300), strict=True):
        assert nominal <= wait <= 1.25 * nominal


def test_what_succeeds_after_a_failure_leaves_no_trace_of_it(store: Store, set_clock: SetClock) -> None:
    set_clock(0)
    fail(store, begin(store, shards=1)[1][0], FULL)
    set_clock(10)
    again = dispatched(store)
    assert store_result(store, again, ran(sum=1))
    with store.reading() as session:
        shard = session.get_one(Shard, again.shard_id)
        assert (shard.state, shard.error, shard.not_before) == ("succeeded", None, None)
