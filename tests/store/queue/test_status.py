"""A look at the whole queue."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from posts_and_results import metric, plan, submission, suite
from queue_steps import ask, dispatched, enter, evaluate_whole, measure, next_shard, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents import Error, OpenShards, Progress, RunningTask
from evalsvc.store.queue.status import failed_view, queue_view, running_view, warned_view
from evalsvc.store.session import Store
from evalsvc.store.tables import Evaluation, now
from evalsvc.store.views import LiveTask


def test_the_queue_by_run_and_its_pace(store: Store) -> None:
    measure(store, 25, 1.0)
    [old] = enter(store, submission(50), suite())
    enter(store, submission(25, run="run-b"), suite())
    enter(store, submission(75), suite())
    with store.transaction() as session:
        before = now() - timedelta(minutes=10)
        session.execute(sa.update(Evaluation).where(Evaluation.id == old).values(created_at=before))
    dispatched(store)
    found = ask(store, queue_view)
    assert (found.queued, found.running, found.finished_last_hour) == (2, 1, 1)
    assert found.seconds_left < 60, "the evaluation took a moment; that there was none before it is no pace"
    assert found.shards == OpenShards(queued=2, running=1)
    by_run = {run.run: (run.queued, run.running) for run in found.runs}
    assert sum(queued for queued, _ in by_run.values()) == 2
    assert set(by_run) == {"run-a", "run-b"}


def test_the_time_left_leaves_idle_time_out(store: Store) -> None:
    """After a quiet night, a queue of minutes was said to take hours."""
    minutes = {10: (-70, -58), 20: (-50, -46), 30: (-48, -44), 40: (-300, -200)}
    for step in minutes:
        measure(store, step, 1.0)
    for step in (50, 60, 70):
        enter(store, submission(step), suite())
    dispatched(store)
    with store.transaction() as session:
        moment = now()
        for evaluation in session.scalars(sa.select(Evaluation)):
            begun, ended = minutes.get(evaluation.checkpoint.step, (-2, None))
            if evaluation.started_at is not None:
                evaluation.started_at = moment + timedelta(minutes=begun)
                evaluation.finished_at = None if ended is None else moment + timedelta(minutes=ended)
    found = ask(store, queue_view)
    assert (found.queued, found.running, found.finished_last_hour) == (2, 1, 3)
    busy = 2 + 6 + 2
    assert found.seconds_left == pytest.approx(3 * 60 * busy / 3, abs=10)


def test_nothing_is_younger_than_now(store: Store) -> None:
    """A clock that was set back would have the oldest wait for less than no time."""
    enter(store, submission(25), suite())
    with store.transaction() as session:
        session.execute(sa.update(Evaluation).values(created_at=now() + timedelta(hours=3)))
    assert ask(store, queue_view).oldest_seconds == 0.0


def test_what_runs_with_its_progress(store: Store) -> None:
    enter(store, submission(25), suite())
    planning = dispatched(store)
    assert store_result(store, planning, plan(4))
    next_shard(store)
    (found,) = ask(store, running_view, {planning.task_id: LiveTask(5, 2.0)})
    assert (found.run, found.step, found.suite) == ("run-a", 25, "quick")
    progress = Progress(done=5, total=40, unit="sequences", per_second=2.0, seconds_left=17.5)
    assert found.tasks == [RunningTask(name="loss-0", progress=progress)]


def test_what_failed_last_comes_first_with_its_reason(store: Store) -> None:
    for step in range(7):
        enter(store, submission(step), suite())
        assignment = dispatched(store)
        error = ShardError("non_finite", f"NaN at step {step}")
        assert store_result(store, assignment, ShardResult(error=error))
    found = ask(store, failed_view)
    assert [item.step for item in found] == [6, 5, 4, 3, 2]
    assert found[0].error == Error(code="non_finite", message="NaN at step 6")


def test_what_is_suspicious_comes_newest_first_and_not_without_end(store: Store) -> None:
    for step in range(7):
        enter(store, submission(step), suite())
        warning = {"code": "inputs_cut", "metric": "loss-0/total", "message": f"cut at step {step}"}
        evaluate_whole(store, metric(1.0), warnings=[warning] if step != 5 else [])
    found = ask(store, warned_view)
    assert [task.step for task in found] == [6, 4, 3, 2, 1]
    assert found[0].model_dump() == {
        "id": 7,
        "run": "run-a",
        "step": 6,
        "variant": "raw",
        "suite": "quick",
        "task": "loss-0",
        "warnings": [{"code": "inputs_cut", "metric": "loss-0/total", "message": "cut at step 6"}],
    }


@pytest.mark.parametrize("later", [{}, {"variant": "ema"}, {"suite": "another"}])
def test_step_0_is_suspicious_until_a_later_step_is_not(store: Store, later: dict[str, str]) -> None:
    """Image rows are untrained at step 0, and every run was suspicious for ever. A wrong layout is wrong later too."""
    warning = {"code": "worse_than_guessing", "metric": "loss-0/image_within", "message": "5.6 is above 4.2"}

    def steps(step: int, warnings: list[dict[str, str]], name: str = "quick", **where: str) -> list[int]:
        enter(store, submission(step, **where), suite(name))
        evaluate_whole(store, metric(1.0), warnings=warnings)
        with store.reading() as session:
            return [task.step for task in warned_view(session)]

    assert steps(0, [warning]) == [0]
    assert steps(10, [warning]) == [10, 0]
    other = later.pop("suite", None)
    if other or later:
        assert steps(20, [], other or "quick", **later) == [10, 0], "another suite or variant says nothing"
    assert steps(30, []) == [10], "a later step that was suspicious stays"
