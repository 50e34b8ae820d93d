"""Posting: the same thing twice, another thing in the same place, and what a plan has due."""

from datetime import timedelta
from typing import Any

import pytest
from posts_and_results import metric, submission, suite
from queue_steps import act, ask, cancel, enter, evaluate_whole, measure, submit_planned
from sqlalchemy import select

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import Conflict, RunBehind
from evalsvc.spec.documents import Plan
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import get_or_create_run
from evalsvc.store.runs.posting import (
    LONGEST,
    UNKNOWN_PACE,
    Submission,
    Submitted,
    due_suites,
    evaluate,
    needs_file,
    submit,
    uploaded_bytes,
)
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation, now


def test_the_same_post_again_gives_the_same_ids_and_may_add_a_suite(store: Store) -> None:
    [first] = enter(store, submission(), suite())
    for _ in range(2):
        assert enter(store, submission(), suite(), suite("other", limit=2)) == [first, first + 1]
    assert act(store, submit, submission(), [suite()]).created is False


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"uri": "/elsewhere.pt"}, "the uri /checkpoints/epoch_25.pt"),
        ({"identity": Identity(101, 1)}, "100 bytes of 1970-01-01 00:00:00.000000001 UTC under the same uri"),
        ({"layout": {"text": {"size": 3}}}, "another layout"),
    ],
)
def test_another_checkpoint_in_the_same_place_is_a_conflict(store: Store, fields: dict[str, object], what: str) -> None:
    enter(store, submission(), suite())
    with pytest.raises(Conflict, match=f"at step 25, variant 'raw', with {what}; .*replace=true"):
        enter(store, submission(**fields), suite())


def test_replacing_takes_the_old_values_out_of_the_history(store: Store) -> None:
    measure(store, 25, 1.0)
    enter(store, submission(identity=Identity(7, 7), replace=True), suite(), suite("slow", limit=2))
    with store.reading() as session:
        assert read_history(session, "run-a").series[0].value == []
        states = session.execute(select(Evaluation.suite, Evaluation.state).order_by(Evaluation.id)).all()
        assert [tuple(row) for row in states] == [("quick", "succeeded"), ("quick", "queued"), ("slow", "queued")]
        assert len(session.scalars(select(Checkpoint)).all()) == 2


def test_replacing_cancels_what_waits(store: Store) -> None:
    enter(store, submission(), suite())
    enter(store, submission(uri="/new.pt", replace=True), suite())
    with store.reading() as session:
        old = session.scalars(select(Evaluation).order_by(Evaluation.id)).first()
        assert (old.state, old.error) == (
            "cancelled",
            {"code": "cancelled", "message": "checkpoint 1 was replaced by another file"},
        )


def test_asking_again_for_what_is_over_measures_again(store: Store) -> None:
    [first] = enter(store, submission(), suite())
    with store.transaction() as session:
        checkpoint = session.get_one(Checkpoint, 1)
        assert evaluate(session, checkpoint, suite(), priority=0)[0].id == first
    evaluate_whole(store, metric(1.0))
    with store.transaction() as session:
        again, created = evaluate(session, session.get_one(Checkpoint, 1), suite(), priority=0)
        assert created
        assert again.id != first


@pytest.mark.parametrize(
    ("step", "due"), [(0, ["often"]), (100, ["often"]), (400, ["often", "late"]), (450, []), (800, ["often"])]
)
def test_a_plan_has_multiples_due_between_first_and_last(step: int, due: list[str]) -> None:
    plan = {
        "suites": [
            {"suite": "often", "every": 100, "first": None, "last": None},
            {"suite": "late", "every": 200, "first": 400, "last": 600},
        ]
    }
    assert due_suites(Plan.model_validate(plan), step) == due


def test_when_behind_newest_skips_older_steps_that_wait(store: Store) -> None:
    with store.transaction() as session:
        get_or_create_run(session, "run-a").plan = {"suites": [{"suite": "quick", "every": 1}], "when_behind": "newest"}
    for step in (1, 3, 2):
        act(store, submit_planned, submission(step))
    with store.reading() as session:
        rows = session.execute(select(Checkpoint.step, Evaluation.state).join(Evaluation)).all()
        assert {row.step: row.state for row in rows} == {1: "cancelled", 3: "queued", 2: "queued"}


URI = f"upload:{'0' * 64}"


def uploaded(step: int = 25, size: int = 100) -> Submission:
    return submission(step, uri=URI, path=URI, identity=Identity(size, 0))


def keep(store: Store, state: str | None) -> None:
    with store.transaction() as session:
        for checkpoint in session.scalars(select(Checkpoint)):
            checkpoint.spool_state = state


def test_bytes_of_those_that_are_kept(store: Store) -> None:
    assert ask(store, uploaded_bytes) == 0
    enter(store, uploaded(25, 3_000_000_000))
    enter(store, uploaded(50, 40))
    enter(store, submission(75))
    for state, size in (("ready", 3_000_000_040), ("released", 0), (None, 0)):
        keep(store, state)
        assert ask(store, uploaded_bytes) == size


@pytest.mark.parametrize("state", ["ready", "released"])
def test_a_file_is_needed_by_what_waits(store: Store, state: str) -> None:
    def posted(*suites: str) -> bool:
        return needs_file(act(store, submit, uploaded(), [suite(name) for name in suites]))

    assert posted(), "new, and in no spool"
    keep(store, state)
    assert posted() is False, "nothing waits"
    assert posted("quick") is (state == "released")
    evaluate_whole(store, metric(1.0))
    assert posted("quick") is False


def refusing(at_most: int = 1, every: int = 1) -> dict[str, Any]:
    return {"suites": [{"suite": "quick", "every": every}], "when_behind": "refuse", "at_most": at_most}


def set_plan(store: Store, **fields: int) -> None:
    with store.transaction() as session:
        get_or_create_run(session, "run-a").plan = refusing(**fields)


def post(store: Store, step: int, **fields: Any) -> Submitted:
    with store.transaction() as session:
        run = get_or_create_run(session, "run-a")
        run.plan = run.plan or refusing()
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
