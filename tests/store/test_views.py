"""The documents of rows, on each database."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from posts_and_results import metric, plan, ran, submission, suite
from queue_steps import act, dispatched, enter, evaluate_whole, next_shard, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents import Checkpoint, Evaluation
from evalsvc.store.lookup import find_checkpoint, find_evaluation, find_run
from evalsvc.store.pages import PageRequest
from evalsvc.store.queue.attempts import finish
from evalsvc.store.runs.listing import run_view, runs_view
from evalsvc.store.session import Store
from evalsvc.store.tables import now
from evalsvc.store.views import checkpoint_view, evaluation_view, in_use


class Speed:
    def __init__(self, done: int, per_second: float | None) -> None:
        self.done = done
        self.per_second = per_second


def view(store: Store, evaluation: int, **live: Speed) -> dict[str, Any]:
    """Return the evaluation's document as JSON that the client reads."""
    with store.reading() as session:
        by_id = {int(name.removeprefix("task")): speed for name, speed in live.items()}
        found = evaluation_view(session, find_evaluation(session, evaluation), by_id)
    document = found.model_dump()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert Evaluation.model_validate(document) == found
    return document


def test_evaluation_that_waits(store: Store) -> None:
    (number,) = enter(store, submission(), suite(tasks=2))
    document = view(store, number)
    expected = {"id": number, "run": "run-a", "step": 25, "variant": "raw", "state": "queued", "error": None}
    assert expected.items() <= document.items()
    assert document["suite"] == {"name": "quick", "digest": suite(tasks=2).digest}
    assert [task["name"] for task in document["tasks"]] == ["loss-0", "loss-1"]
    assert document["tasks"][0]["progress"]["total"] is None
    assert document["started_at"] is None


def test_progress_is_what_is_finished_and_what_runs(store: Store) -> None:
    (number,) = enter(store, submission(), suite())
    assert store_result(store, dispatched(store), plan(shards=4))
    assert store_result(store, dispatched(store), ran())
    next_shard(store)
    (task,) = view(store, number, task1=Speed(5, 2.5))["tasks"]
    assert task["progress"] == {"done": 15, "total": 40, "unit": "sequences", "per_second": 2.5, "seconds_left": 10.0}
    counts = {"total": 4, "succeeded": 1, "running": 1, "queued": 2, "failed": 0, "cancelled": 0, "attempts": 2}
    assert task["shards"] == counts | {"skipped": 0}


def test_what_waits_to_be_tried_again_says_why_and_until_when(store: Store) -> None:
    """A task stood at 2 of 4 for minutes, and nothing said that its disk was full."""
    (number,) = enter(store, submission(), suite())
    assert store_result(store, dispatched(store), plan(shards=3))
    before, full = now(), ShardError("artifact_not_written", "no space left on device; make room")
    for _ in range(2):
        assignment = dispatched(store)
        assert act(store, finish, assignment, ShardResult(error=full), max_attempts=3)
    (task,) = view(store, number)["tasks"]
    retry = task["retry"]
    assert (retry["shards"], retry["error"]) == (2, full.to_json())
    assert timedelta(seconds=1) < datetime.fromisoformat(retry["at"]) - before < timedelta(seconds=60)
    assert store_result(store, dispatched(store), ShardResult(error=ShardError("non_finite", "NaN")))
    (task,) = view(store, number)["tasks"]
    assert (task["state"], task["retry"]) == ("failed", None)


def test_results_carry_their_protocols(store: Store) -> None:
    (number,) = enter(store, submission(), suite())
    evaluate_whole(store, metric(1.5), metric(float("inf"), "loss/image", limit=2), shards=2)
    document = view(store, number)
    (task,) = document["tasks"]
    assert [item["value"] for item in task["metrics"]] == [1.5, "Infinity"]
    assert {content["limit"] for content in task["protocols"].values()} == {1, 2}
    assert task["progress"]["done"] == 20
    assert document["finished_at"] is not None


def test_failed_shards_are_counted(store: Store) -> None:
    (number,) = enter(store, submission(), suite())
    assert store_result(store, dispatched(store), plan(shards=2))
    error = ShardError("non_finite", "step 25, layer 3")
    assert store_result(store, dispatched(store), ShardResult(error=error))
    document = view(store, number)
    assert document["error"] == document["tasks"][0]["error"] == error.to_json()
    assert document["tasks"][0]["shards"]["failed"] == 1


@pytest.mark.parametrize(
    ("spool_state", "over", "expected"),
    [
        (None, False, True),
        (None, True, False),
        ("copying", True, True),
        ("copying", False, True),
        ("ready", False, False),
        ("failed", True, False),
        ("released", False, True),
    ],
)
def test_in_use(store: Store, spool_state: str | None, over: bool, expected: bool) -> None:
    """What a trainer asks before it deletes the file: a copy that is ready is read in its stead."""
    enter(store, submission(), suite())
    if over:
        evaluate_whole(store, metric(1.0))
    with store.transaction() as session:
        checkpoint = find_checkpoint(session, 1)
        checkpoint.spool_state = spool_state
        assert in_use(session, checkpoint) is expected


def test_checkpoint(store: Store) -> None:
    enter(store, submission(tags={"lr": "1"}, tokens_seen=2**40), suite(), suite("other", limit=2))
    with store.reading() as session:
        document = checkpoint_view(session, find_checkpoint(session, 1))
    assert Checkpoint.model_validate(json.loads(json.dumps(document.model_dump()))) == document
    assert [item.suite for item in document.evaluations] == ["quick", "other"]
    assert document.tokens_seen == 2**40


def test_run_leaves_replaced_checkpoints_out(store: Store) -> None:
    enter(store, submission(25), suite())
    enter(store, submission(25, uri="/checkpoints/new.pt", replace=True), suite())
    enter(store, submission(0), suite())
    evaluate_whole(store, metric(1.0), metric(2.0, "loss/image"))
    with store.reading() as session:
        document = run_view(session, find_run(session, "run-a"))
        (run,) = runs_view(session, PageRequest()).runs
    assert [item.step for item in document.checkpoints] == [0, 25]
    assert document.checkpoints[1].uri == "/checkpoints/new.pt"
    assert (run.checkpoints, run.last_step, run.values) == (2, 25, 4)
