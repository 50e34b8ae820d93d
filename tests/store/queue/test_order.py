"""The order of the queue, where a run that takes all workers begins, or results that never come; and looks at it."""

import statistics
import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from long_lists import fill_queue
from posts_and_results import act, ask, enter, metric, plan, ran, submission, suite
from queue_steps import dispatched, evaluate_whole, lose, measure, next_shard, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents import Error, OpenShards, Progress, RunningTask
from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.queue.status import failed_view, queue_view, running_view, warned_view
from evalsvc.store.session import Store
from evalsvc.store.tables import Attempt, Evaluation, Shard, now
from evalsvc.store.views import LiveTask, Pace, read_pace


def post(store: Store, run: str, *steps: int, **fields: int) -> None:
    for step in steps:
        enter(store, submission(step, run=run, **fields), suite())


def place(assignment: Assignment | None) -> str:
    """Such as `a 3`."""
    _, run, _, step = assignment.request.checkpoint.label.split()
    return f"{run.strip(chr(39))} {step}"


def begin(store: Store, worker_state: WorkerState | None = None, shards: int = 2) -> Assignment:
    """Dispatch what is next, which is a plan, and plan it."""
    assignment = dispatched(store, "plan", worker_state)
    store_result(store, assignment, plan(shards))
    return assignment


def test_higher_priority_comes_first_then_the_newest_checkpoint(store: Store) -> None:
    post(store, "a", 1)
    post(store, "a", 2, 4, 3, priority=5)
    assert [place(next_shard(store)) for _ in range(4)] == ["a 4", "a 3", "a 2", "a 1"]
    assert next_shard(store) is None


def test_what_was_begun_is_finished_before_a_newer_checkpoint_but_not_before_a_higher_priority(store: Store) -> None:
    """A run that posts faster than it is evaluated would have no result at all."""
    post(store, "a", 1)
    begin(store, shards=2)
    post(store, "a", 2)
    post(store, "a", 0, priority=1)
    assert [place(next_shard(store)) for _ in range(4)] == ["a 0", "a 1", "a 1", "a 2"]


def test_runs_take_turns_however_much_one_of_them_has_posted(store: Store) -> None:
    """By the age of what waits, a run with a backlog would keep all others out until it is gone."""
    post(store, "a", 1, 2, 3)
    post(store, "b", 1, 2)
    post(store, "c", 1)
    turns: dict[int, float] = {}
    order = []
    for clock in range(6):
        assignment = dispatched(store, worker_state=WorkerState(turns=turns))
        assert assignment.begins
        turns[assignment.run_id] = clock
        order.append(place(assignment))
    assert order == ["a 3", "b 2", "c 1", "a 2", "b 1", "a 1"]


def test_the_run_with_fewer_shards_on_workers_comes_first(store: Store) -> None:
    post(store, "a", 1)
    first = begin(store, shards=8)
    post(store, "b", 1)
    assert place(next_shard(store, WorkerState(busy={first.run_id: 1}))) == "b 1"
    assert place(next_shard(store)) == "a 1"


def test_a_worker_goes_on_with_the_checkpoint_that_it_has_loaded(store: Store) -> None:
    """Else two workers would load two checkpoints each, by turns."""
    post(store, "a", 1, 2)
    newer, older = dispatched(store), dispatched(store)
    for item in (newer, older):
        store_result(store, item, plan(2))
    assert [place(newer), place(older)] == ["a 2", "a 1"]
    assert place(next_shard(store, WorkerState(frozenset({older.checkpoint_id})))) == "a 1"
    assert place(next_shard(store, WorkerState(frozenset({newer.checkpoint_id})))) == "a 2"
    assert place(next_shard(store)) == "a 2", "that was begun first"
    assert place(next_shard(store, WorkerState(frozenset({newer.checkpoint_id})))) == "a 1", "no worker idles over it"


def test_of_runs_with_equal_claims_the_one_that_is_loaded_comes_first(store: Store) -> None:
    post(store, "a", 1)
    post(store, "b", 1)
    a, b = begin(store), begin(store, WorkerState(turns={1: 1.0}))
    assert [place(a), place(b)] == ["a 1", "b 1"]
    turns = {a.run_id: 1.0, b.run_id: 2.0}
    assert place(next_shard(store, WorkerState(frozenset({b.checkpoint_id}), turns=turns))) == "b 1"
    assert place(next_shard(store, WorkerState(turns=turns))) == "a 1"


def test_a_loaded_checkpoint_holds_no_newer_one_up(store: Store) -> None:
    post(store, "a", 1)
    first = begin(store, shards=1)
    dispatched(store)
    enter(store, submission(1, run="a"), suite("other", limit=2))
    post(store, "a", 2)
    assert place(next_shard(store, WorkerState(frozenset({first.checkpoint_id})))) == "a 2"


def test_an_evaluation_whose_only_shard_is_still_on_a_worker_holds_up_nobody(store: Store) -> None:
    """Cancelled and retried, it is queued, and has nothing to dispatch yet."""
    post(store, "a", 1)
    first = dispatched(store)
    with store.transaction() as session:
        cancel_evaluation(session, first.evaluation_id)
        retry_evaluation(session, first.evaluation_id)
        for shard in session.scalars(sa.select(Shard)):
            shard.state = "running"
    assert next_shard(store) is None
    post(store, "a", 0)
    assert place(next_shard(store)) == "a 0"


def test_a_shard_that_is_tried_again_comes_in_its_place(store: Store) -> None:
    post(store, "a", 1, 2)
    begin(store, shards=2)
    first = dispatched(store)
    lose(store, first)
    again = dispatched(store)
    assert (again.shard_id, again.attempt) == (first.shard_id, 2)
    assert store_result(store, again, ran(sum=1))


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("begun", [pytest.param(0, marks=pytest.mark.long), 8])
def test_ten_thousand_evaluations_in_the_queue_hold_up_no_worker(store: Store, begun: int) -> None:
    """Joined with all shards that wait, one hand-out took 20 s of SQLite and 5 s of PostgreSQL."""
    act(store, fill_queue, 10_000)
    for assignment in [dispatched(store) for _ in range(begun)]:
        store_result(store, assignment, plan(100))
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        dispatched(store)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 1, seconds


def test_the_queue_by_run_and_its_pace(store: Store) -> None:
    measure(store, 25, 1.0)
    [old] = enter(store, submission(50), suite())
    post(store, "run-b", 25)
    post(store, "run-a", 75)
    with store.transaction() as session:
        session.get_one(Evaluation, old).created_at = now() - timedelta(minutes=10)
    dispatched(store)
    found = ask(store, queue_view, ask(store, read_pace, {}, 1))
    assert (found.queued, found.running, found.finished_last_hour) == (2, 1, 1)
    assert found.seconds_left < 60, "the evaluation took a moment"
    assert found.shards == OpenShards(queued=2, running=1)
    by_run = {run.run: (run.queued, run.running) for run in found.runs}
    assert sum(queued for queued, _ in by_run.values()) == 2
    assert set(by_run) == {"run-a", "run-b"}
    with store.transaction() as session:
        session.execute(sa.update(Evaluation).values(created_at=now() + timedelta(hours=3)))
    assert ask(store, queue_view, ask(store, read_pace, {}, 1)).oldest_seconds == 0.0, "the clock was set back"


def test_the_time_left_counts_shards_and_not_whole_checkpoints(store: Store) -> None:
    """A queue of twelve checkpoints stood at nothing for minutes, since the first ones had not ended."""
    post(store, "run-a", 25, 50, 75)
    assert ask(store, queue_view, ask(store, read_pace, {}, 2)).seconds_left is None, "nothing ran yet"
    store_result(store, dispatched(store, "plan"), plan(4))
    store_result(store, dispatched(store, "run"), ran())
    running = dispatched(store, "run")
    with store.transaction() as session:
        for attempt in session.scalars(sa.select(Attempt)):
            ended, taken = attempt.finished_at, 30 if attempt.finished_at else 10
            attempt.started_at = (ended or now()) - timedelta(seconds=taken)
    live = {running.task_id: LiveTask(5, 1.0)}
    pace = ask(store, read_pace, live, 2)
    # 30 s of planning, 30 s and 10 s of shards for 15 of 40 units.
    whole = 70 / (15 / 40)
    assert [*pace.seconds.values()] == [pytest.approx(whole, rel=0.05)]
    queue = ask(store, queue_view, pace)
    assert queue.seconds_left == pytest.approx(whole * (2 + 25 / 40) / 2, rel=0.05)
    assert queue.runs[0].seconds_left == queue.seconds_left
    (found,) = ask(store, running_view, live, pace)
    assert (found.share_done, found.seconds_left) == (15 / 40, pytest.approx(whole * 25 / 40 / 2, rel=0.05))
    assert ask(store, queue_view, ask(store, read_pace, live, 0)).seconds_left is None, "no worker"


def test_what_runs_with_its_progress(store: Store) -> None:
    post(store, "run-a", 25)
    planning = begin(store, shards=4)
    next_shard(store)
    (found,) = ask(store, running_view, {planning.task_id: LiveTask(5, 2.0)}, Pace({}, {}, 1))
    assert (found.run, found.step, found.suite) == ("run-a", 25, "quick")
    progress = Progress(done=5, total=40, unit="sequences", per_second=2.0, seconds_left=17.5)
    assert found.tasks == [RunningTask(name="loss-0", progress=progress)]


def test_what_failed_last_comes_first_with_its_reason(store: Store) -> None:
    for step in range(7):
        post(store, "run-a", step)
        store_result(store, dispatched(store), ShardResult(error=ShardError("non_finite", f"NaN at step {step}")))
    found = ask(store, failed_view)
    assert [item.step for item in found] == [6, 5, 4, 3, 2, 1, 0]
    assert found[0].error == Error(code="non_finite", message="NaN at step 6")


def warned(code: str = "inputs_cut", message: str = "cut") -> list[dict[str, str]]:
    return [{"code": code, "metric": "loss-0/total", "message": message}]


def test_what_is_suspicious_comes_newest_first_and_not_without_end(store: Store) -> None:
    for step in range(7):
        post(store, "run-a", step)
        evaluate_whole(store, metric(1.0), warnings=warned(message=f"cut at step {step}") if step != 5 else [])
    found = ask(store, warned_view)
    assert [task.step for task in found] == [6, 4, 3, 2, 1]
    place = {"id": 7, "run": "run-a", "step": 6, "variant": "raw", "suite": "quick", "task": "loss-0"}
    assert found[0].model_dump() == place | {"warnings": warned(message="cut at step 6")}


@pytest.mark.parametrize(("variant", "name"), [("raw", "quick"), ("ema", "quick"), ("raw", "another")])
def test_step_0_is_suspicious_until_a_later_step_is_not(store: Store, variant: str, name: str) -> None:
    """Image rows are untrained at step 0, and every run was suspicious for ever. A wrong layout is wrong later too."""

    def steps(step: int, warnings: list[dict[str, str]], variant: str = "raw", name: str = "quick") -> list[int]:
        enter(store, submission(step, variant=variant), suite(name))
        evaluate_whole(store, metric(1.0), warnings=warnings)
        return [task.step for task in ask(store, warned_view)]

    assert steps(0, warned("worse_than_guessing")) == [0]
    assert steps(10, warned("worse_than_guessing")) == [10, 0]
    if (variant, name) != ("raw", "quick"):
        assert steps(20, [], variant, name) == [10, 0], "another suite or variant says nothing"
    assert steps(30, []) == [10], "a later step that was suspicious stays"
