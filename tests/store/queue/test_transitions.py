"""The state machine of a shard: the whole table, and events at random against a small model of a queue."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import chain, product
from typing import Any

import msgpack
import pytest
from posts_and_results import plan, ran, result, submission, suite
from queue_steps import act, ask, begin, dispatched, enter, lose, next_shard, retry, state, store_result
from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.files.artifacts import Artifact, KeptArtifact
from evalsvc.files.codec import Codec, Unreadable
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import KeptResult, LookResult, MergeResult, PlanResult, ShardError, ShardResult
from evalsvc.spec.looks import Until
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue import transitions
from evalsvc.store.queue.attempts import Assignment, finish, give_up, requeue_running, run_again
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.queue.transitions import LOOK, MERGE, PLAN, TABLE, Event, State, apply, from_row, to_row
from evalsvc.store.session import Store
from evalsvc.store.tables import OVER, Attempt, Evaluation, Shard

ENDS = {Event.SUCCEED, Event.FAIL, Event.BACK_OFF, Event.RELEASE}
REFUSED = {
    *product(State, [Event.DISPATCH]),
    *product(State, ENDS),
    *product(State, [Event.EXHAUST, Event.STOP, Event.LOSE_OUTPUT]),
    (State.CANCELLED, Event.SKIP),
} - {
    (State.QUEUED, Event.DISPATCH),
    *product([State.RUNNING], {*ENDS, Event.EXHAUST, Event.STOP}),
    *product([State.SUCCEEDED], [Event.EXHAUST, Event.STOP, Event.LOSE_OUTPUT]),
}
"""Only a running attempt ends, only a queued shard is dispatched, and only a succeeded shard has an output to lose."""

ATTEMPTS = 3
TRANSIENT, FINAL = ShardError("artifact_not_written", "disk full"), ShardError("non_finite", "NaN")


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_event_is_in_the_table_or_refused(state: State, event: Event) -> None:
    assert ((state, event) in TABLE) != ((state, event) in REFUSED)
    if (state, event) in REFUSED:
        shard = Shard(id=7, state=state.value)
        with pytest.raises(ValueError, match=f"shard 7 is {state}, in which '{event}'"):
            apply(Session(), shard, event)
        assert shard.state == state, "a refused event changes nothing"


class Walk:
    """A queue with one evaluation, and the attempts that were ever dispatched: any of them may end at any time."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.dice = random.Random(seed)
        self.ends = [8, 1, 0.3, 1, 0.5] if seed % 2 else [3, 4, 0.1, 4, 3]
        self.dispatched: list[Assignment] = []
        self.finished: dict[int, int] = {}
        """The attempts of run shards that have succeeded, by shard id."""
        [self.evaluation] = enter(store, submission(), suite(tasks=2))

    def step(self) -> None:
        moves = [self.dispatch, self.end, self.end, self.end, self.restart, self.cancel, self.retry]
        self.dice.choices(moves, weights=[6, 4, 1, 1, 0.3, 0.4, 2])[0]()
        self.require_invariants()

    def dispatch(self) -> None:
        if assignment := next_shard(self.store):
            self.dispatched.append(assignment)

    def end(self) -> None:
        """End any attempt, current or not. Only a current, running attempt may change its shard (the fence)."""
        if not self.dispatched:
            return
        assignment = self.dice.choice(self.dispatched[-4:])
        stage, shard_id = assignment.request.stage, assignment.shard_id
        with self.store.reading() as session:
            shard = session.get(Shard, shard_id)
            is_current = shard is not None and (shard.state, shard.attempt) == ("running", assignment.attempt)
            attempt = session.get(Attempt, (shard_id, assignment.attempt))
            is_stored = attempt is not None and attempt.outcome == "succeeded"
            runs = session.scalars(select(Shard).where(Shard.task_id == assignment.task_id, Shard.stage == "run"))
            lost = [OutputFile(item.task_id, item.id, item.attempt, "ab" * 32, 9) for item in runs]
        output = {"plan": plan(3), "run": ran(sum=1), "merge": result()}[stage]
        with self.store.transaction() as session:
            end = self.dice.choices(["succeed", "transient", "final", "die", "lose"], weights=self.ends)[0]
            if end == "succeed":
                assert finish(session, assignment, output, ATTEMPTS) == (is_current or is_stored)
            elif end == "lose" and stage == "merge":
                assert run_again(session, assignment, lost, TRANSIENT, ATTEMPTS) == is_current
                self.finished = {} if is_current else self.finished
            elif end in ("transient", "final"):
                error = TRANSIENT if end == "transient" else FINAL
                assert finish(session, assignment, ShardResult(error=error), ATTEMPTS) == is_current
            else:
                assert give_up(session, assignment, "worker_died", TRANSIENT, ATTEMPTS) == is_current

    def restart(self) -> None:
        with self.store.transaction() as session:
            running = session.scalars(select(Shard).where(Shard.state == "running")).all()
            charged = [shard.failed_attempts for shard in running]
            assert requeue_running(session, {}) == len(running)
            assert [shard.failed_attempts for shard in running] == charged, "a lost service is no failure"

    def cancel(self) -> None:
        with self.store.transaction() as session:
            if session.get_one(Evaluation, self.evaluation).state not in OVER:
                cancel_evaluation(session, self.evaluation)

    def retry(self) -> None:
        with self.store.transaction() as session:
            if session.get_one(Evaluation, self.evaluation).state in ("failed", "partly_failed", "cancelled"):
                retry_evaluation(session, self.evaluation)

    def require_invariants(self) -> None:
        with self.store.reading() as session:
            evaluation = session.get_one(Evaluation, self.evaluation)
            for shard in session.scalars(select(Shard)):
                outcomes = [attempt.outcome for attempt in shard.attempts]
                assert len(outcomes) == shard.attempt, "every attempt has its row"
                assert outcomes.count(None) == (shard.state == "running"), "one attempt is open while the shard runs"
                assert shard.failed_attempts <= ATTEMPTS
                assert shard.state != "queued" or shard.failed_attempts < ATTEMPTS
            runs = session.scalars(select(Shard).where(Shard.stage == "run", Shard.state == "succeeded"))
            finished = {shard.id: shard.attempt for shard in runs}
            assert self.finished.items() <= finished.items(), "what has succeeded is neither lost nor run again"
            self.finished = finished
            for task in evaluation.tasks:
                by_stage = {stage: [item.state for item in task.shards if item.stage == stage] for stage in STAGES}
                assert task.state != "cancelled" or "queued" not in chain(*by_stage.values())
                ended = by_stage["merge"] == ["succeeded"]
                assert task.state != "succeeded" or ended
                assert not ended or task.state in OVER
                assert task.state in OVER or "cancelled" not in chain(*by_stage.values()), "nothing waits for ever"
                assert not by_stage["merge"] or set(by_stage["run"]) == {"succeeded"}, "a merge reads every output"
            assert (evaluation.state in OVER) == all(task.state in OVER for task in evaluation.tasks)


STAGES = ("plan", "run", "merge")


@pytest.mark.parametrize("seed", range(4))
def test_events_at_random_keep_the_queue_sound(store: Store, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(transitions, "FIRST_BACK_OFF", 0.0)
    walk = Walk(store, seed)
    for _ in range(120):
        walk.step()
    for _ in range(1_000):  # without failures, whatever was left comes to its end
        walk.retry()
        walk.restart()
        if (assignment := next_shard(store)) is None:
            break
        output = {"plan": plan(3), "run": ran(sum=1), "merge": result()}[assignment.request.stage]
        assert act(store, finish, assignment, output, ATTEMPTS)
    with store.reading() as session:
        assert session.get_one(Evaluation, walk.evaluation).state == "succeeded"


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
    assert act(store, finish, assignment, ShardResult(error=error), max_attempts=3)


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
    error = ask(store, find_evaluation, 1).error
    assert error == {"code": FULL.code, "message": f"{FULL.message} (tried 3 times)"}
    retry(store, 1)
    assert next_shard(store) is not None, "whoever asks for a retry need not wait"


def test_what_cannot_pass_fails_at_once(store: Store) -> None:
    fail(store, begin(store, shards=1)[1][0], BROKEN)
    assert state(store, 1) == "failed"
    assert next_shard(store) is None
    assert ask(store, find_evaluation, 1).error == BROKEN.to_json()


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


METRICS = {"metrics": [{"name": "coco/fid", "value": "NaN"}], "protocols": {"ab": {"limit": None}}}
ARTIFACT = {"kind": "grid", "name": "g.png", "media_type": "image/png", "details": {}, "sha256": "ab", "size": 3}

PLANNED = {"shards": [{"index": 0, "units": 10}], "total": 10, "unit": "images", "looks": [[1, 10]]}
UNTIL = {"stderr": 0.1, "metric": "kid"}

STORED: list[tuple[Codec[Any], Any, dict[str, Any]]] = [
    (
        PLAN,
        PlanResult([{"index": 0, "units": 10}], 10, "images", [(1, 10)], Until(**UNTIL)),
        PLANNED | {"until": UNTIL},
    ),
    (LOOK, LookResult(METRICS["metrics"], METRICS["protocols"]), METRICS),
    (
        MERGE,
        KeptResult(METRICS["metrics"], METRICS["protocols"], b"\0", {"n": 1}, [KeptArtifact(**ARTIFACT)], []),
        {**METRICS, "items": b"\0", "notes": {"n": 1}, "artifacts": [ARTIFACT], "warnings": []},
    ),
]


@pytest.mark.parametrize(("codec", "result", "document"), STORED, ids=["plan", "look", "merge"])
def test_a_result_is_stored_as_its_fields(codec: Codec[Any], result: Any, document: dict[str, Any]) -> None:
    assert to_row(result) == msgpack.packb(document)
    assert from_row(codec, msgpack.packb(document)) == result
    old = {"shards": [{"units": 4}], "total": 4, "unit": "sequences"}
    assert from_row(PLAN, msgpack.packb(old)) == PlanResult([{"units": 4}], 4, "sequences"), "without looks"


def test_what_is_no_result_is_refused() -> None:
    """A file's name in the place of a plan, or artifacts that lie nowhere yet, would be found out by the merge."""
    for stored in (None, OutputFile(1, 2, 3, "ab", 4), b"\x80"):
        with pytest.raises(Unreadable, match="no PlanResult"):
            from_row(PLAN, stored)
    with pytest.raises(TypeError, match="the value is a MergeResult, not a LookResult"):
        to_row(MergeResult([], {}, [], {}, [Artifact("grid", "g.png", "image/png", b"png")], []))
