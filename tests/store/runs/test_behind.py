"""A run whose plan refuses what it cannot keep up with: how many steps may be open, and how long to wait."""

from datetime import timedelta
from typing import Any

import pytest
from queue_steps import cancel, enter, evaluate_whole, metric, submission, submit_planned, suite

from evalsvc.errors import Conflict, RunBehind
from evalsvc.store.lookup import get_or_create_run
from evalsvc.store.runs.posting import LONGEST, UNKNOWN_PACE, Submitted, submit
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation, now


@pytest.fixture(autouse=True)
def _refusing(store: Store) -> None:
    set_plan(store)


def set_plan(store: Store, at_most: int = 1, every: int = 1) -> None:
    with store.transaction() as session:
        plan = {"suites": [{"suite": "quick", "every": every}], "when_behind": "refuse", "at_most": at_most}
        get_or_create_run(session, "run-a").plan = plan


def post(store: Store, step: int, **fields: Any) -> Submitted:
    with store.transaction() as session:
        return submit_planned(session, submission(step, **fields))


def refuse(store: Store, step: int, **fields: Any) -> RunBehind:
    with pytest.raises(RunBehind) as caught:
        post(store, step, **fields)
    return caught.value


def checkpoints(store: Store) -> int:
    with store.reading() as session:
        return session.query(Checkpoint).count()


def test_a_step_is_refused_until_the_one_before_is_over(store: Store) -> None:
    post(store, 10)
    error = refuse(store, 20)
    assert error.retry_after == UNKNOWN_PACE
    assert error.message == (
        "run 'run-a' is behind: evaluations of step 10 are unfinished, and the run's plan says when_behind: refuse, "
        "at_most: 1; nothing was stored; post step 20 again in 30 s"
    )
    assert checkpoints(store) == 1, "nothing of it is stored"
    evaluate_whole(store, metric(1.0))
    assert post(store, 20).created


@pytest.mark.parametrize("ended", ["cancelled", "replaced"])
def test_what_was_given_up_is_not_waited_for(store: Store, ended: str) -> None:
    [evaluation] = post(store, 10).evaluations
    if ended == "cancelled":
        cancel(store, evaluation.id)
    else:
        enter(store, submission(10, uri="/other.pt", replace=True))
    assert post(store, 20).created


def test_variants_of_a_step_are_one(store: Store) -> None:
    """The averaged weights of a step come in posts of their own."""
    post(store, 10)
    post(store, 10, variant="ema")
    assert "evaluations of step 10 are unfinished" in refuse(store, 20).message


def test_as_many_as_the_plan_says(store: Store) -> None:
    set_plan(store, at_most=3)
    for step in (10, 20, 30):
        post(store, step)
    assert "evaluations of steps 10, 20, 30 are unfinished" in refuse(store, 40).message


def test_what_measures_nothing_new_is_taken(store: Store) -> None:
    """The same post again, a step at which nothing is due, and suites that were asked for by name."""
    set_plan(store, every=10)
    post(store, 10)
    set_plan(store, at_most=2, every=10)
    post(store, 20)
    set_plan(store, every=10)
    assert not post(store, 20).created
    assert post(store, 25).evaluations == []
    assert len(enter(store, submission(30), suite())) == 1
    assert enter(store, submission(30, run="run-b"), suite())
    refuse(store, 40)
    with pytest.raises(Conflict):
        post(store, 20, uri="/other.pt")
    refuse(store, 20, uri="/other.pt", replace=True)


@pytest.mark.parametrize(("seconds", "waits"), [(10, 20), (0.01, 1), (3000, LONGEST)])
def test_the_wait_is_by_the_pace_of_the_last_hour_and_bounded(store: Store, seconds: float, waits: int) -> None:
    """Two steps have to be over first: three are open, and the plan allows two."""
    with store.transaction() as session:
        checkpoint = submit(session, submission(1, run="run-b"), []).checkpoint
        ended = now()
        begun = ended - timedelta(seconds=seconds)
        session.add(
            Evaluation(
                checkpoint_id=checkpoint.id,
                suite="quick",
                suite_digest="d",
                state="succeeded",
                started_at=begun,
                finished_at=ended,
            )
        )
    set_plan(store, at_most=3)
    for step in (10, 20, 30):
        post(store, step)
    set_plan(store, at_most=2)
    assert refuse(store, 40).retry_after == waits
