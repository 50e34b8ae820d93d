"""What followers of an evaluation are told: everything, in order, once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from posts_and_results import metric, plan, ran, result, submission, suite
from queue_steps import ask, cancel, dispatched, enter, evaluate_whole, retry, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.store import events
from evalsvc.store.events import read_events
from evalsvc.store.queue.stages import cancel_evaluation
from evalsvc.store.session import Store
from evalsvc.store.tables import Evaluation, EvaluationEvent


def page_of(store: Store, evaluation: int, after: int = 0) -> events.Page:
    page = ask(store, read_events, evaluation, after)
    assert page is not None
    return page


def told(store: Store, evaluation: int, after: int = 0) -> list[tuple[Any, ...]]:
    """All events after a number, as (number, kind, task, state)."""
    found = []
    while (page := page_of(store, evaluation, after)).events:
        found += [(event.number, event.kind, event.task, event.state) for event in page.events]
        after = page.events[-1].number
    return found


def test_a_whole_evaluation_is_told(store: Store) -> None:
    """A follower that waits for the last task must not be told of the evaluation's end before it."""
    (evaluation,) = enter(store, submission(), suite(tasks=2))
    evaluate_whole(store, metric(1.5))
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
    page = page_of(store, evaluation)
    assert page.is_last
    failed = next(event for event in page.events if event.state == "failed")
    assert failed.data == {"error": {"code": "invalid_data", "message": "line 3"}}


def test_an_interim_result_is_told_whole(store: Store) -> None:
    """Its shard loses it when the task ends, and a follower that comes back later must still be told."""
    (evaluation,) = enter(store, submission(), suite())
    for outcome in (plan(2, looks=[1]), ran(sum=1), result(metric(1.25))):
        assert store_result(store, dispatched(store), outcome)
    evaluate_whole(store, metric(1.5))
    page = page_of(store, evaluation)
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

    def fail() -> None:
        with store.transaction() as session:
            cancel_evaluation(session, evaluation)
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert told(store, evaluation) == [(1, "state", None, "queued")]
    cancel(store, evaluation)
    assert [number for number, *_ in told(store, evaluation)] == [1, 2, 3]


def test_long_stories_come_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAGE", 2)
    (evaluation,) = enter(store, submission(), suite())
    evaluate_whole(store, metric(1.5))
    first = page_of(store, evaluation)
    assert (len(first.events), first.is_last) == (2, False)
    assert [number for number, *_ in told(store, evaluation)] == [1, 2, 3, 4, 5]


def test_a_deleted_evaluation_takes_its_events_along(store: Store) -> None:
    (evaluation,) = enter(store, submission(), suite())
    with store.transaction() as session:
        session.execute(sa.delete(Evaluation))
    with store.reading() as session:
        assert read_events(session, evaluation, 0) is None
        assert session.scalars(sa.select(EvaluationEvent)).all() == []


def test_states_are_changed_where_they_are_noted() -> None:
    """An UPDATE that goes past the objects would change a state without an event."""
    files = Path(events.__file__).parent.rglob("*.py")
    assert [path.name for path in files if ".values(state" in path.read_text()] == []
