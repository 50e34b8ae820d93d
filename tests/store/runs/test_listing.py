"""The list of runs: what it says of each, and the tag that changes with it."""

from collections.abc import Callable

import pytest
from history_reference import Point, write
from posts_and_results import metric, plan, submission, suite
from queue_steps import ask, cancel, dispatched, enter, evaluate_whole, measure, retry, set_base, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents import RunSummary
from evalsvc.store.pages import PageRequest
from evalsvc.store.runs.listing import runs_tag, runs_view
from evalsvc.store.session import Store


def summary(store: Store, run: str = "run-a") -> RunSummary:
    with store.reading() as session:
        return next(item for item in runs_view(session, PageRequest()).runs if item.name == run)


def tag(store: Store) -> str:
    return ask(store, runs_tag, PageRequest())


def fail(store: Store, step: int) -> None:
    enter(store, submission(step), suite())
    store_result(store, dispatched(store, "plan"), plan(1))
    store_result(store, dispatched(store, "run"), ShardResult(None, ShardError("non_finite", "layer 3 gives NaN")))


def test_steps_posted_and_measured(store: Store) -> None:
    enter(store, submission(10))
    assert (summary(store).last_step, summary(store).last_value_step, summary(store).values) == (10, None, 0)
    measure(store, 20, 1.0)
    write(store, {"lower/x": [Point(5, 1.0, None, None), Point(70, 1.0, None, None)]}, "run-a")
    found = summary(store)
    assert (found.last_step, found.last_value_step, found.values) == (20, 70, 3), "imported values count too"
    write(store, {"lower/x": [Point(90, 1.0, None, None)]}, "run-b")
    assert (summary(store, "run-b").last_step, summary(store, "run-b").last_value_step) == (None, 90)


def test_what_waits_and_what_failed(store: Store) -> None:
    fail(store, 10)
    measure(store, 20, 1.0)
    enter(store, submission(20), suite("other", limit=2))
    enter(store, submission(30), suite(), suite("other", limit=2))
    assert (summary(store).failed, summary(store).waiting) == (1, 2), "checkpoints, not evaluations"
    evaluate_whole(store, metric(1.0))
    assert (summary(store).failed, summary(store).waiting) == (1, 0)


def test_a_failure_that_a_later_evaluation_mends_is_none(store: Store) -> None:
    fail(store, 10)
    assert summary(store).failed == 1
    enter(store, submission(10), suite("other", limit=2))
    evaluate_whole(store, metric(1.0))
    assert summary(store).failed == 1, "another suite mends nothing"
    retry(store, 1)
    evaluate_whole(store, metric(1.0))
    assert summary(store).failed == 0


def test_tags_are_those_of_the_newest_checkpoint(store: Store) -> None:
    enter(store, submission(10, tags={"seed": "1", "lr": "old"}))
    assert summary(store).tags == {"seed": "1", "lr": "old"}
    enter(store, submission(20, variant="ema", tags={"seed": "1", "kind": "ema"}))
    assert summary(store).tags == {"seed": "1", "kind": "ema"}
    enter(store, submission(20, tags={"seed": "1"}))
    assert summary(store).tags == {"seed": "1"}, "of several variants, raw"
    write(store, {"lower/x": [Point(30, 1.0, None, None)]}, "imported")
    assert summary(store, "imported").tags == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda store: enter(store, submission(40)),
        lambda store: enter(store, submission(50, run="run-b")),
        lambda store: enter(store, submission(10), suite("other", limit=2)),
        lambda store: cancel(store, 2),
        lambda store: evaluate_whole(store, metric(1.0)),
        lambda store: write(store, {"lower/x": [Point(30, 1.0, None, None)]}, "imported"),
        lambda store: name_it(store),
    ],
    ids=["checkpoint", "run", "evaluation", "cancelled", "value", "imported", "base"],
)
def test_whatever_changes_a_row_changes_the_tag(store: Store, change: Callable[[Store], object]) -> None:
    measure(store, 10, 1.0)
    enter(store, submission(20), suite())
    before, rows = tag(store), summary(store)
    assert tag(store) == before
    change(store)
    assert tag(store) != before
    assert ask(store, runs_view, PageRequest()).runs != [rows]


def name_it(store: Store) -> None:
    set_base(store, "run-a", "run-a", 10)


def test_values_are_counted_once(store: Store) -> None:
    """Counting five million values took longer than all else, at every look of an open page."""
    measure(store, 10, 1.0)
    asked: dict[str, bytes] = {}
    counted: list[str] = []

    def remember(run: str, tag: str, make: Callable[[], bytes]) -> bytes:
        if tag not in asked:
            counted.append(run)
            asked[tag] = make()
        return asked[tag]

    for _ in range(3):
        assert ask(store, runs_view, PageRequest(), remember).runs[0].values == 1
    assert counted == ["run-a"]
    measure(store, 20, 1.0)
    assert ask(store, runs_view, PageRequest(), remember).runs[0].values == 2
