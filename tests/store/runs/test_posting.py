"""Posting: the same thing twice, another thing in the same place, what a plan has due; and the bases of runs."""

from datetime import timedelta
from typing import Any

import pytest
from history_reference import history_of
from posts_and_results import act, ask, enter, metric, request, set_base, set_spool_state, submission, submit_due, suite
from queue_steps import cancel, evaluate_whole, measure
from sqlalchemy import select

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import Conflict, RunBehind, UnknownName
from evalsvc.spec.documents import Base, Plan
from evalsvc.store.lookup import find_checkpoint, find_run, get_or_create_run
from evalsvc.store.runs import posting
from evalsvc.store.runs.base import base_ids, base_view, find_base, is_first, runs_awaiting_base
from evalsvc.store.runs.listing import run_view
from evalsvc.store.runs.posting import Submission, Submitted, due_suites, needs_file, submit, uploaded_bytes
from evalsvc.store.session import Store
from evalsvc.store.tables import Attempt, Checkpoint, Evaluation
from evalsvc.store.views import in_use


def test_the_same_post_again_gives_the_same_ids_and_may_add_a_suite(store: Store) -> None:
    [first] = enter(store, submission(), suite())
    for _ in range(2):
        assert enter(store, submission(), suite(), suite("other", limit=2)) == [first, first + 1]
    assert act(store, submit, submission(), [suite()]).created is False


def test_another_checkpoint_in_the_same_place_is_a_conflict(store: Store) -> None:
    enter(store, submission(), suite())
    for what, fields in {
        "the uri /checkpoints/epoch_25.pt": {"uri": "/elsewhere.pt"},
        "100 bytes of 1970-01-01 00:00:00.000000001 UTC under the same uri": {"identity": Identity(101, 1)},
        "another layout": {"layout": {"text": {"size": 3}}},
    }.items():
        with pytest.raises(Conflict, match=f"at step 25, variant 'raw', with {what}; .*replace=true"):
            enter(store, submission(**fields), suite())


def test_replacing_takes_the_old_values_out_of_the_history_and_cancels_what_waits(store: Store) -> None:
    measure(store, 25, 1.0)
    enter(store, submission(), suite("late", limit=3))
    enter(store, submission(identity=Identity(7, 7), replace=True), suite(), suite("slow", limit=2))
    assert history_of(store).series[0].value == []
    with store.reading() as session:
        found = session.scalars(select(Evaluation).order_by(Evaluation.id)).all()
        assert len(session.scalars(select(Checkpoint)).all()) == 2
    expected = [("quick", "succeeded"), ("late", "cancelled"), ("quick", "queued"), ("slow", "queued")]
    assert [(evaluation.suite, evaluation.state) for evaluation in found] == expected
    assert found[1].error == {"code": "cancelled", "message": "checkpoint 1 was replaced by another file"}


def test_asking_again_for_what_is_over_measures_again(store: Store) -> None:
    [first] = enter(store, submission(), suite())
    assert request(store) == first
    evaluate_whole(store, metric(1.0))
    assert request(store) == first + 1


def test_a_plan_has_multiples_due_between_first_and_last() -> None:
    late = {"suite": "late", "every": 200, "first": 400, "last": 600}
    plan = Plan.model_validate({"suites": [{"suite": "often", "every": 100}, late]})
    both = ["often", "late"]
    due = {0: ["often"], 100: ["often"], 400: both, 450: [], 600: both, 800: ["often"]}
    assert {step: due_suites(plan, step) for step in due} == due


def test_when_behind_newest_skips_older_steps_that_wait(store: Store) -> None:
    with store.transaction() as session:
        get_or_create_run(session, "run-a").plan = {"suites": [{"suite": "quick", "every": 1}], "when_behind": "newest"}
    for step in (1, 3, 2):
        act(store, submit_due, submission(step))
    with store.reading() as session:
        rows = session.execute(select(Checkpoint.step, Evaluation.state).join(Evaluation)).all()
    assert {row.step: row.state for row in rows} == {1: "cancelled", 3: "queued", 2: "queued"}


URI = f"upload:{'0' * 64}"


def uploaded(step: int = 25, size: int = 100) -> Submission:
    return submission(step, uri=URI, path=URI, identity=Identity(size, 0))


def test_bytes_of_those_that_are_kept(store: Store) -> None:
    assert ask(store, uploaded_bytes) == 0
    enter(store, uploaded(25, 3_000_000_000))
    enter(store, uploaded(50, 40))
    enter(store, submission(75))
    for state, size in (("ready", 3_000_000_040), ("released", 0), (None, 0)):
        for checkpoint in (1, 2, 3):
            set_spool_state(store, checkpoint, state)
        assert ask(store, uploaded_bytes) == size


@pytest.mark.parametrize("state", ["ready", "released"])
def test_a_file_is_needed_by_what_waits(store: Store, state: str) -> None:
    def posted(*suites: str) -> bool:
        return needs_file(act(store, submit, uploaded(), [suite(name) for name in suites]))

    assert posted(), "new, and in no spool"
    set_spool_state(store, 1, state)
    assert posted() is False, "nothing waits"
    assert posted("quick") is (state == "released")
    evaluate_whole(store, metric(1.0))
    assert posted("quick") is False


def set_plan(store: Store, at_most: int = 1, every: int = 1) -> None:
    plan = {"suites": [{"suite": "quick", "every": every}], "when_behind": "refuse", "at_most": at_most}
    with store.transaction() as session:
        get_or_create_run(session, "run-a").plan = plan


def post(store: Store, step: int, **fields: Any) -> Submitted:
    return act(store, submit_due, submission(step, **fields))


def refuse(store: Store, step: int, **fields: Any) -> RunBehind:
    with pytest.raises(RunBehind) as caught:
        post(store, step, **fields)
    return caught.value


def test_a_step_is_refused_until_the_one_before_is_over(store: Store) -> None:
    set_plan(store)
    post(store, 10)
    error = refuse(store, 20)
    assert error.retry_after == posting.UNKNOWN_PACE
    assert error.message == (
        "run 'run-a' is behind: evaluations of step 10 are unfinished, and the run's plan says when_behind: refuse, "
        "at_most: 1; nothing was stored; post step 20 again in 30 s"
    )
    with store.reading() as session:
        assert session.query(Checkpoint).count() == 1, "nothing of it is stored"
    post(store, 10, variant="ema")
    assert "evaluations of step 10 are unfinished" in refuse(store, 20).message, "variants of a step are one"
    evaluate_whole(store, metric(1.0))
    assert post(store, 20).created


@pytest.mark.parametrize("ended", ["cancelled", "replaced"])
def test_what_was_given_up_is_not_waited_for(store: Store, ended: str) -> None:
    set_plan(store)
    [evaluation] = post(store, 10).evaluations
    if ended == "cancelled":
        cancel(store, evaluation.id)
    else:
        enter(store, submission(10, uri="/other.pt", replace=True))
    assert post(store, 20).created


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


@pytest.mark.parametrize(("seconds", "waits"), [(10, 20), (0.01, 1), (3000, posting.LONGEST)])
def test_the_wait_is_by_the_pace_of_earlier_tasks_and_bounded(store: Store, seconds: float, waits: int) -> None:
    """Two steps have to be over first: three are open, and the plan allows two."""
    measure(store, 1, 1.0, run="run-b")
    with store.transaction() as session:
        first, *_ = session.query(Attempt).order_by(Attempt.shard_id)
        first.started_at = first.finished_at - timedelta(seconds=seconds)
    set_plan(store, at_most=3)
    for step in (10, 20, 30):
        post(store, step)
    set_plan(store, at_most=2)
    assert refuse(store, 40).retry_after == pytest.approx(waits, abs=2), "a database may keep whole seconds"


def base_of(store: Store, *checkpoints: int) -> list[int | None]:
    with store.reading() as session:
        found = [find_base(session, find_checkpoint(session, checkpoint)) for checkpoint in checkpoints]
        return [base and base.id for base in found]


def test_a_run_is_compared_with_its_own_step_0(store: Store) -> None:
    enter(store, submission(25))
    assert base_of(store, 1) == [None]
    enter(store, submission(0))
    assert base_of(store, 1, 2) == [2, 2]
    for step, variant in ((0, "ema"), (25, "ema"), (25, "swa")):
        enter(store, submission(step, variant=variant))
    assert base_of(store, 4, 5) == [3, 2], "of the same variant where that was posted"


def test_a_named_base_is_of_any_run_and_holds_for_every_variant(store: Store) -> None:
    enter(store, submission(240_000, run="text"))
    set_base(store, "run-a", "text", 240_000)
    enter(store, submission(0))
    enter(store, submission(25, variant="ema"))
    assert base_of(store, 2, 3) == [1, 1]
    assert base_of(store, 1) == [None], "the base's own run is compared with its own"


def test_of_a_base_that_was_replaced_the_newest_counts(store: Store) -> None:
    enter(store, submission(0))
    enter(store, submission(5, run="run-b"))
    set_base(store, "run-b", "run-a", 0)
    enter(store, submission(0, identity=Identity(7, 7), replace=True))
    assert base_of(store, 2) == [3]
    assert ask(store, base_ids) == {3}


def test_a_base_that_does_not_exist(store: Store) -> None:
    for posted in (10, 20, 40, 50, 900):
        enter(store, submission(posted))
    for words, named in {
        "no run is named 'run-c'; did you mean 'run-": ("run-c", 0),
        "has no checkpoint at step 30, variant 'raw'; the nearest steps are 10, 20, 40, 50": ("run-a", 30),
        "no variant of run 'run-a' at step 40 is named 'row'; did you mean 'raw'": ("run-a", 40, "row"),
        "run 'run-b' has no checkpoint at step 0, variant 'raw'; the run has no checkpoint yet": ("run-b", 0),
    }.items():
        with pytest.raises(UnknownName, match=words):
            set_base(store, "run-b", *named)
        with pytest.raises(UnknownName):
            ask(store, find_run, "run-b")


def test_a_run_shows_its_base(store: Store) -> None:
    enter(store, submission(25))
    expected = Base(run="run-a", step=0, variant="raw", named=False, checkpoint=None)
    with store.reading() as session:
        assert run_view(session, find_run(session, "run-a")).base == expected
    enter(store, submission(0))
    set_base(store, "run-a", "run-a", 25)
    view = ask(store, base_view, ask(store, find_run, "run-a"))
    assert view == Base(run="run-a", step=25, variant="raw", named=True, checkpoint=1)


def test_the_file_of_a_named_base_stays_in_use(store: Store) -> None:
    measure(store, 25, 1.0)
    for named in (False, True):
        if named:
            set_base(store, "run-b", "run-a", 25)
        with store.reading() as session:
            checkpoint = find_checkpoint(session, 1)
            assert in_use(session, checkpoint) is named
            assert base_ids(session) == ({1} if named else set())
            checkpoint.spool_state = "ready"
            assert in_use(session, checkpoint) is False, "there is a copy"


def test_who_waits_for_a_base_that_is_being_copied(store: Store) -> None:
    enter(store, submission(0, spool="copy"))
    enter(store, submission(3, run="text", spool="copy"))
    set_base(store, "run-b", "text", 3)
    with store.transaction() as session:
        waiting = {find_run(session, run).id for run in ("run-a", "run-b")}
        assert runs_awaiting_base(session) == waiting
        find_checkpoint(session, 2).spool_state = "failed"
        assert runs_awaiting_base(session) == {find_run(session, "run-a").id}


def are_first(store: Store, *checkpoints: int) -> list[bool]:
    with store.reading() as session:
        found = [find_checkpoint(session, checkpoint) for checkpoint in checkpoints]
        return [is_first(session, checkpoint, find_base(session, checkpoint)) for checkpoint in found]


def test_the_first_is_the_base_or_the_smallest_step(store: Store) -> None:
    """There nothing is forgotten yet, so a text loss above that of a guess is no finding."""
    enter(store, submission(50))
    assert are_first(store, 1) == [True], "as far as is known"
    enter(store, submission(25))
    enter(store, submission(25, variant="ema"))
    assert are_first(store, 1, 2, 3) == [False, True, True]
    enter(store, submission(100, run="text"))
    enter(store, submission(300, run="text"))
    assert are_first(store, 4, 5) == [True, False]
    set_base(store, "run-a", "text", 300)
    assert are_first(store, 1, 5) == [False, True]
    enter(store, submission(25, identity=Identity(7, 7), replace=True))
    enter(store, submission(30, identity=Identity(8, 8)))
    assert are_first(store, 6, 7) == [True, False]


def test_a_merge_is_told_whether_its_checkpoint_is_the_first(store: Store) -> None:
    enter(store, submission(0), suite())
    enter(store, submission(25), suite())
    told = {(item.checkpoint_id, item.request.stage): item for item in evaluate_whole(store, metric(1.0))}
    assert [told[checkpoint, "merge"].request.is_first for checkpoint in (1, 2)] == [True, False]
