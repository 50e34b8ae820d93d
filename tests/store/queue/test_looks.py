"""Looks at tasks that go on: when they happen, what they show, and when they end a task."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from posts_and_results import looked, metric, plan, ran, result, submission, suite
from queue_steps import act, cancel, dispatched, enter, next_shard, store_result
from sqlalchemy import select

from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue.attempts import give_up, requeue_running, unwanted
from evalsvc.store.session import Store
from evalsvc.store.tables import Attempt, Shard
from evalsvc.store.views import evaluation_view

UNTIL = {"stderr": 0.05, "metric": "text"}


def begin(store: Store, shards: int = 4, until: Mapping[str, Any] | None = None) -> int:
    """An evaluation of one planned task that is looked at after its first and its second shard, and at its end."""
    [evaluation] = enter(store, submission(), suite())
    store_result(store, dispatched(store), plan(shards, looks=(1, 2, shards), until=until))
    return evaluation


def run(store: Store, shards: int) -> None:
    for _ in range(shards):
        assignment = dispatched(store, "run")
        assert store_result(store, assignment, ran(sum=assignment.request.shards[0]["index"]))


def seen(stderr: float = 0.1) -> ShardResult:
    return ShardResult(looked(metric(1.5, stderr=stderr)))


def task_view(store: Store, evaluation: int) -> dict[str, Any]:
    with store.reading() as session:
        (task,) = evaluation_view(session, find_evaluation(session, evaluation), {}).tasks
        return task.model_dump()


def states(store: Store) -> list[tuple[str, int, str]]:
    with store.reading() as session:
        rows = session.execute(select(Shard.stage, Shard.index, Shard.state).order_by(Shard.id))
        return [(stage, index, state) for stage, index, state in rows]


def values(store: Store) -> list[Any]:
    with store.reading() as session:
        return [series.value for series in read_history(session, "run-a").series]


def test_a_look_comes_before_the_shards_that_wait_and_shows_what_is_known_so_far(store: Store) -> None:
    evaluation = begin(store)
    assert task_view(store, evaluation)["interim"] is None
    run(store, 1)
    look = dispatched(store, "look")
    assert (look.request.shards, look.request.outputs) == ([{"index": 0, "units": 10}], [ran(sum=0).output])
    store_result(store, look, seen())
    interim = task_view(store, evaluation)["interim"]
    assert (interim["done"], interim["metrics"][0]["value"]) == (10, 1.5)
    run(store, 1)
    store_result(store, dispatched(store, "look"), seen())
    assert task_view(store, evaluation)["interim"]["done"] == 20
    assert values(store) == [], "what is not the end is no history"
    run(store, 2)
    store_result(store, dispatched(store, "merge"), result(metric(2.5)))
    final = task_view(store, evaluation)
    assert (final["state"], final["interim"], final["shards"]["succeeded"]) == ("succeeded", None, 4)
    assert values(store) == [[2.5]]
    with store.reading() as session:
        assert set(session.scalars(select(Shard.output).where(Shard.stage != "plan"))) == {None}


def test_a_look_that_nobody_has_begun_is_not_waited_for_at_the_end(store: Store) -> None:
    begin(store, shards=3)
    runs = [dispatched(store, "run") for _ in range(3)]
    for item in runs:
        store_result(store, item, ran())
    store_result(store, dispatched(store, "merge"), result(metric(2.5)))
    assert {state for stage, _, state in states(store) if stage == "look"} == {"skipped"}
    assert values(store) == [[2.5]]


@pytest.mark.parametrize("failure", ["error", "death"])
def test_a_look_that_fails_is_one_look_less(store: Store, failure: str) -> None:
    evaluation = begin(store, until=UNTIL)
    run(store, 1)
    look = dispatched(store, "look")
    error = ShardError("non_finite", "NaN")
    if failure == "error":
        store_result(store, look, ShardResult(error=error))
    else:
        act(store, give_up, look, "worker_died", error, max_attempts=1)
    run(store, 1)
    store_result(store, dispatched(store, "look"), seen(math.nan))
    run(store, 2)
    store_result(store, dispatched(store, "merge"), result(metric(2.5)))
    assert task_view(store, evaluation)["state"] == "succeeded"


def test_enough_ends_the_task_and_stops_what_runs(store: Store) -> None:
    """The numbers rest on the shards of the look that was enough, however many had run by then."""
    evaluation = begin(store, shards=5, until=UNTIL)
    first, second, third, fourth = (dispatched(store, "run") for _ in range(4))
    for item in (third, first, second):
        store_result(store, item, ran(sum=item.request.shards[0]["index"]))
    one, two = dispatched(store, "look"), next_shard(store)
    assert (two.request.stage, two.request.shards) == ("run", [{"index": 4, "units": 10}]), "the looks go in order"
    store_result(store, one, seen(0.06))
    enough = dispatched(store, "look")
    assert len(enough.request.outputs) == 2
    store_result(store, enough, seen(0.05))
    with store.reading() as session:
        running = [item.shard_id for item in (first, fourth, two)]
        assert unwanted(session, running) == {fourth.shard_id, two.shard_id}
    assert not store_result(store, fourth, ran(sum=3)), "its result is late"
    merge = dispatched(store, "merge")
    assert merge.request.outputs == [ran(sum=0).output, ran(sum=1).output]
    store_result(store, merge, result(metric(2.5, stderr=0.05)))
    task = task_view(store, evaluation)
    assert task["state"] == "succeeded"
    assert task["progress"]["done"] == task["progress"]["total"] == 20
    assert (task["shards"]["succeeded"], task["shards"]["skipped"]) == (2, 3)
    assert task["provenance"]["notes"]["stopped"] == (
        "after 20 of 50 sequences: the standard error of text, 0.05, is at most 0.05"
    )
    assert len(task["provenance"]["shards"]) == 2
    assert values(store) == [[2.5]]
    assert next_shard(store) is None
    with store.reading() as session:
        assert None not in set(session.scalars(select(Attempt.outcome)))


def test_a_merge_waits_for_a_look_that_may_be_enough(store: Store) -> None:
    """Else the number of samples would depend on which worker was faster."""
    begin(store, shards=3, until=UNTIL)
    runs = [dispatched(store, "run") for _ in range(3)]
    for item in runs:
        store_result(store, item, ran())
    look = dispatched(store, "look")
    assert next_shard(store) is None
    assert act(store, requeue_running, {}) == 1
    again = dispatched(store, "look")
    assert not store_result(store, look, seen(0.01)), "an attempt that was lost"
    store_result(store, again, seen(0.01))
    assert len(dispatched(store, "merge").request.outputs) == 1


def test_a_cancelled_evaluation_is_not_looked_at(store: Store) -> None:
    evaluation = begin(store)
    run(store, 1)
    cancel(store, evaluation)
    assert next_shard(store) is None
    assert task_view(store, evaluation)["interim"] is None
