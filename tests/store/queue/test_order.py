"""The order of the queue. A run that takes all workers, or results that never come, begin here."""

import statistics
import time

import pytest
from posts_and_results import plan, ran, submission, suite
from queue_steps import dispatched, enter, lose, next_shard, store_result
from sqlalchemy import insert, select

from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation, Run, Shard, Task


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


def test_what_was_begun_is_finished_before_a_newer_checkpoint_is_begun(store: Store) -> None:
    """A run that posts faster than it is evaluated would have no result at all."""
    post(store, "a", 1)
    begin(store, shards=2)
    post(store, "a", 2)
    assert [place(next_shard(store)) for _ in range(3)] == ["a 1", "a 1", "a 2"]


def test_higher_priority_comes_before_what_was_begun(store: Store) -> None:
    post(store, "a", 1)
    begin(store)
    post(store, "a", 0, priority=1)
    assert place(next_shard(store)) == "a 0"


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
        for shard in session.scalars(select(Shard)):
            shard.state = "running"
    assert next_shard(store) is None
    post(store, "a", 0)
    assert place(next_shard(store)) == "a 0"


def test_a_shard_that_is_tried_again_comes_in_its_place(store: Store) -> None:
    post(store, "a", 1)
    post(store, "a", 2)
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
    runs, steps = 10, 1000
    with store.transaction() as session:
        session.execute(insert(Run), [{"name": f"run-{run}", "history_version": 0} for run in range(runs)])
        rows = [(run, step) for run in range(1, runs + 1) for step in range(steps)]
        file = {"uri": "/x", "path": "/x", "size": 1, "mtime_ns": 1}
        checkpoint = {"variant": "raw", "tags": {}, "spool": "none", **file}
        session.execute(insert(Checkpoint), [{"run_id": run, "step": step, **checkpoint} for run, step in rows])
        evaluation = {"suite": "s", "suite_digest": "d", "planned": False, "priority": 0, "state": "queued"}
        ids = range(1, len(rows) + 1)
        session.execute(insert(Evaluation), [{"checkpoint_id": item, **evaluation} for item in ids])
        task = {"index": 0, "kind": "loss", "name": "loss", "parameters": {}, "state": "queued"}
        session.execute(insert(Task), [{"evaluation_id": item, **task} for item in ids])
        shard = {"stage": "plan", "index": 0, "state": "queued", "attempt": 0, "failed_attempts": 0}
        session.execute(insert(Shard), [{"task_id": item, **shard} for item in ids])
    for assignment in [dispatched(store) for _ in range(begun)]:
        store_result(store, assignment, plan(100))
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        dispatched(store)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 1, seconds
