"""The documents of rows, and what followers of an evaluation are told: everything, in order, once."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from posts_and_results import act, ask, enter, metric, plan, ran, result, set_spool_state, submission, suite
from queue_steps import cancel, dispatched, evaluate_whole, next_shard, retry, store_result
from sqlalchemy.orm import Session

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec import documents
from evalsvc.store import events
from evalsvc.store.events import read_events
from evalsvc.store.lookup import find_checkpoint, find_evaluation, find_run
from evalsvc.store.pages import PageRequest
from evalsvc.store.queue.attempts import finish
from evalsvc.store.queue.stages import cancel_evaluation
from evalsvc.store.runs.listing import run_view, runs_view
from evalsvc.store.session import Store
from evalsvc.store.tables import Evaluation, now
from evalsvc.store.views import LiveTask, checkpoint_view, evaluation_view, in_use


def view(store: Store, evaluation: int, live: dict[int, LiveTask] | None = None) -> dict[str, Any]:
    """Return the evaluation's document as JSON that the client reads."""
    with store.reading() as session:
        found = evaluation_view(session, find_evaluation(session, evaluation), live or {})
    document = found.model_dump()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert documents.Evaluation.model_validate(document) == found
    return document


def test_an_evaluation_that_waits_and_then_runs(store: Store) -> None:
    (number,) = enter(store, submission(), suite(tasks=2))
    document = view(store, number)
    expected = {"id": number, "run": "run-a", "step": 25, "variant": "raw", "state": "queued", "error": None}
    assert (expected | {"started_at": None}).items() <= document.items()
    assert document["suite"] == {"name": "quick", "digest": suite(tasks=2).digest}
    assert [task["name"] for task in document["tasks"]] == ["loss-0", "loss-1"]
    assert document["tasks"][0]["progress"]["total"] is None
    assert store_result(store, dispatched(store), plan(shards=4))
    assert store_result(store, dispatched(store, "run"), ran())
    next_shard(store)
    task = view(store, number, {1: LiveTask(5, 2.5)})["tasks"][0]
    assert task["progress"] == {"done": 15, "total": 40, "unit": "sequences", "per_second": 2.5, "seconds_left": 10.0}
    counts = {"total": 4, "succeeded": 1, "running": 1, "queued": 2, "failed": 0, "cancelled": 0, "attempts": 2}
    assert task["shards"] == counts | {"skipped": 0}


def test_what_waits_to_be_tried_again_says_why_and_until_when(store: Store) -> None:
    """A task stood at 2 of 4 for minutes, and nothing said that its disk was full."""
    (number,) = enter(store, submission(), suite())
    assert store_result(store, dispatched(store), plan(shards=3))
    before, full = now(), ShardError("artifact_not_written", "no space left on device; make room")
    for _ in range(2):
        assert act(store, finish, dispatched(store), ShardResult(error=full), max_attempts=3)
    retry = view(store, number)["tasks"][0]["retry"]
    assert (retry["shards"], retry["error"]) == (2, full.to_json())
    assert timedelta(seconds=1) < datetime.fromisoformat(retry["at"]) - before < timedelta(seconds=60)
    error = ShardError("non_finite", "step 25, layer 3")
    assert store_result(store, dispatched(store), ShardResult(error=error))
    document = view(store, number)
    (task,) = document["tasks"]
    assert (task["state"], task["retry"], task["shards"]["failed"]) == ("failed", None, 1)
    assert document["error"] == task["error"] == error.to_json()


def test_results_carry_their_protocols(store: Store) -> None:
    (number,) = enter(store, submission(), suite())
    evaluate_whole(store, metric(1.5), metric(float("inf"), "loss/image", limit=2), shards=2)
    document = view(store, number)
    (task,) = document["tasks"]
    assert [item["value"] for item in task["metrics"]] == [1.5, "Infinity"]
    assert {content["limit"] for content in task["protocols"].values()} == {1, 2}
    assert task["progress"]["done"] == 20
    assert document["finished_at"] is not None


def test_in_use(store: Store) -> None:
    """What a trainer asks before it deletes the file: a copy that is ready is read in its stead."""
    enter(store, submission(), suite())

    def used(spool_state: str | None) -> bool:
        set_spool_state(store, 1, spool_state)
        with store.reading() as session:
            return in_use(session, find_checkpoint(session, 1))

    assert [used(state) for state in (None, "copying", "ready", "released")] == [True, True, False, True]
    evaluate_whole(store, metric(1.0))
    assert [used(state) for state in (None, "copying", "failed")] == [False, True, False]


def test_checkpoint(store: Store) -> None:
    enter(store, submission(tags={"lr": "1"}, tokens_seen=2**40), suite(), suite("other", limit=2))
    with store.reading() as session:
        document = checkpoint_view(session, find_checkpoint(session, 1))
    assert documents.Checkpoint.model_validate(json.loads(json.dumps(document.model_dump()))) == document
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


def told(store: Store, evaluation: int, after: int = 0) -> list[tuple[Any, ...]]:
    """All events after a number, as (number, kind, task, state)."""
    found = []
    while (page := ask(store, read_events, evaluation, after)).events:
        found += [(event.number, event.kind, event.task, event.state) for event in page.events]
        after = page.events[-1].number
    return found


def test_a_whole_evaluation_is_told_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that waits for the last task must not be told of the evaluation's end before it."""
    monkeypatch.setattr(events, "PAGE", 2)
    (evaluation,) = enter(store, submission(), suite(tasks=2))
    evaluate_whole(store, metric(1.5))
    assert ask(store, read_events, evaluation + 1, 0) is None
    first = ask(store, read_events, evaluation, 0)
    assert (len(first.events), first.is_last) == (2, False)
    assert told(store, evaluation) == [
        (1, "state", None, "queued"),
        (2, "state", None, "running"),
        (3, "task", "loss-0", "running"),
        (4, "task", "loss-0", "succeeded"),
        (5, "task", "loss-1", "running"),
        (6, "task", "loss-1", "succeeded"),
        (7, "state", None, "succeeded"),
    ]


def test_what_happened_between_two_looks_is_told(store: Store) -> None:
    """Whoever reads the state alone never learns that it failed, was retried, and was cancelled."""
    (evaluation,) = enter(store, submission(), suite())
    assert store_result(store, dispatched(store), ShardResult(error=ShardError("invalid_data", "line 3")))
    retry(store, evaluation)
    cancel(store, evaluation)
    states = [state for _, kind, _, state in told(store, evaluation, after=2) if kind == "state"]
    assert states == ["failed", "queued", "cancelled"]
    page = ask(store, read_events, evaluation, 0)
    assert page.is_last
    failed = next(event for event in page.events if event.state == "failed")
    assert failed.data == {"error": {"code": "invalid_data", "message": "line 3"}}


def test_an_interim_result_is_told_whole(store: Store) -> None:
    """Its shard loses it when the task ends, and a follower that comes back later must still be told."""
    (evaluation,) = enter(store, submission(), suite())
    for outcome in (plan(2, looks=[1]), ran(sum=1), result(metric(1.25))):
        assert store_result(store, dispatched(store), outcome)
    evaluate_whole(store, metric(1.5))
    page = ask(store, read_events, evaluation, 0)
    (interim,) = [event for event in page.events if event.kind == "interim"]
    assert (interim.task, interim.data["done"], interim.data["metrics"][0]["value"]) == ("loss-0", 10, 1.25)
    assert [event.state for event in page.events[-2:]] == ["succeeded", "succeeded"]


def test_numbers_have_no_gap_whoever_writes(store: Store) -> None:
    """A number that is given before an older one is committed would hide that one for ever."""
    (evaluation,) = enter(store, submission(), suite())
    seen: list[int] = []

    def write(_: int) -> None:
        with store.transaction() as session:
            # As a request and the coordinator do: of one evaluation, at the same moment.
            row = session.get_one(Evaluation, evaluation)
            row.priority += 1
            row.state = "running" if row.state == "queued" else "queued"

    def follow() -> None:
        while len(seen) < 41:
            seen.extend(number for number, *_ in told(store, evaluation, seen[-1] if seen else 0))

    with ThreadPoolExecutor(5) as pool:
        follower = pool.submit(follow)
        list(pool.map(write, range(40)))
        follower.result(timeout=60)
    assert seen == list(range(1, 42))


def test_what_is_rolled_back_is_not_told(store: Store) -> None:
    (evaluation,) = enter(store, submission(), suite())

    def fail(session: Session) -> None:
        cancel_evaluation(session, evaluation)
        session.flush()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        act(store, fail)
    assert told(store, evaluation) == [(1, "state", None, "queued")]
    cancel(store, evaluation)
    assert [number for number, *_ in told(store, evaluation)] == [1, 2, 3]


def test_states_are_changed_where_they_are_noted() -> None:
    """An UPDATE that goes past the objects would change a state without an event."""
    files = Path(events.__file__).parent.rglob("*.py")
    assert [path.name for path in files if ".values(state" in path.read_text()] == []
