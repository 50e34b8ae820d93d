"""The state machine of a shard: the whole table, and events at random against a small model of a queue."""

import random
from itertools import chain, product

import pytest
from queue_steps import enter, next_shard, plan, ran, result, submission, suite
from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.files.outputs import OutputFile
from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.queue import transitions
from evalsvc.store.queue.attempts import Assignment, finish, give_up, requeue_running, run_again
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.queue.transitions import TABLE, Event, State, apply
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
def test_events_at_random_keep_the_queue_sound_and_end_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
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
        with store.transaction() as session:
            assert finish(session, assignment, output, ATTEMPTS)
    with store.reading() as session:
        assert session.get_one(Evaluation, walk.evaluation).state == "succeeded"
