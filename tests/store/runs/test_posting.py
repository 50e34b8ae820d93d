"""Posting: the same thing twice, another thing in the same place, and what a plan has due."""

import pytest
from queue_steps import enter, evaluate_whole, measure, metric, submission, submit_planned, suite
from sqlalchemy import select

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import Conflict
from evalsvc.spec.documents import Plan
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import get_or_create_run
from evalsvc.store.runs.posting import Submission, due_suites, evaluate, needs_file, submit, uploaded_bytes
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation


def test_the_same_post_again_gives_the_same_ids(store: Store) -> None:
    first = enter(store, submission(), suite(), suite("other", limit=2))
    assert enter(store, submission(), suite(), suite("other", limit=2)) == first
    with store.transaction() as session:
        assert submit(session, submission(), [suite()]).created is False


def test_a_later_post_may_add_a_suite(store: Store) -> None:
    [first] = enter(store, submission(), suite())
    assert enter(store, submission(), suite(), suite("other", limit=2)) == [first, first + 1]


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


def test_another_variant_is_no_conflict(store: Store) -> None:
    enter(store, submission(), suite())
    enter(store, submission(variant="ema", uri="/elsewhere.pt"), suite())


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
        assert old is not None
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
        with store.transaction() as session:
            submit_planned(session, submission(step))
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
    with store.reading() as session:
        assert uploaded_bytes(session) == 0
    enter(store, uploaded(25, 3_000_000_000))
    enter(store, uploaded(50, 40))
    enter(store, submission(75))
    for state, size in (("ready", 3_000_000_040), ("released", 0), (None, 0)):
        keep(store, state)
        with store.reading() as session:
            assert uploaded_bytes(session) == size


@pytest.mark.parametrize("state", ["ready", "released"])
def test_a_file_is_needed_by_what_waits(store: Store, state: str) -> None:
    def posted(*suites: str) -> bool:
        with store.transaction() as session:
            return needs_file(submit(session, uploaded(), [suite(name) for name in suites]))

    assert posted(), "new, and in no spool"
    keep(store, state)
    assert posted() is False, "nothing waits"
    assert posted("quick") is (state == "released")
    evaluate_whole(store, metric(1.0))
    assert posted("quick") is False
