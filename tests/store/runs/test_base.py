"""What a run is compared with: named, by default, replaced, and kept."""

import pytest
from posts_and_results import metric, plan, ran, result, submission, suite
from queue_steps import ask, enter, measure, next_shard, set_base, store_result

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import UnknownName
from evalsvc.spec.documents import Base
from evalsvc.store.lookup import find_checkpoint, find_run
from evalsvc.store.runs import base as bases
from evalsvc.store.runs.base import base_ids, base_view, find_base, runs_awaiting_base
from evalsvc.store.runs.listing import run_view
from evalsvc.store.session import Store
from evalsvc.store.views import in_use


def base_of(store: Store, checkpoint: int) -> int | None:
    with store.reading() as session:
        found = find_base(session, find_checkpoint(session, checkpoint))
        return None if found is None else found.id


def test_a_run_is_compared_with_its_own_step_0(store: Store) -> None:
    enter(store, submission(25))
    assert base_of(store, 1) is None
    enter(store, submission(0))
    assert (base_of(store, 1), base_of(store, 2)) == (2, 2)


def test_the_default_is_of_the_same_variant_where_that_was_posted(store: Store) -> None:
    for step, variant in ((0, "raw"), (0, "ema"), (25, "ema"), (25, "swa")):
        enter(store, submission(step, variant=variant))
    assert (base_of(store, 3), base_of(store, 4)) == (2, 1)


def test_a_named_base_is_of_any_run_and_holds_for_every_variant(store: Store) -> None:
    enter(store, submission(240_000, run="text"))
    set_base(store, "run-a", "text", 240_000)
    enter(store, submission(0))
    enter(store, submission(25, variant="ema"))
    assert (base_of(store, 2), base_of(store, 3)) == (1, 1)
    assert base_of(store, 1) is None, "the base's own run is compared with its own"


def test_of_a_base_that_was_replaced_the_newest_counts(store: Store) -> None:
    enter(store, submission(0))
    enter(store, submission(5, run="run-b"))
    set_base(store, "run-b", "run-a", 0)
    enter(store, submission(0, identity=Identity(7, 7), replace=True))
    assert base_of(store, 2) == 3
    assert ask(store, base_ids) == {3}


@pytest.mark.parametrize(
    ("of", "step", "variant", "words"),
    [
        ("run-c", 0, "raw", "no run is named 'run-c'; did you mean 'run-"),
        ("run-a", 30, "raw", "has no checkpoint at step 30, variant 'raw'; the nearest steps are 10, 20, 40, 50"),
        ("run-a", 40, "row", "no variant of run 'run-a' at step 40 is named 'row'; did you mean 'raw'?"),
        ("run-b", 0, "raw", "run 'run-b' has no checkpoint at step 0, variant 'raw'; the run has no checkpoint yet"),
    ],
)
def test_a_base_that_does_not_exist(store: Store, of: str, step: int, variant: str, words: str) -> None:
    for posted in (10, 20, 40, 50, 900):
        enter(store, submission(posted))
    with pytest.raises(UnknownName) as caught:
        set_base(store, "run-b", of, step, variant)
    assert words in caught.value.message
    with store.reading() as session, pytest.raises(UnknownName):
        find_run(session, "run-b")


def test_a_run_shows_its_base(store: Store) -> None:
    enter(store, submission(25))
    expected = Base(run="run-a", step=0, variant="raw", named=False, checkpoint=None)
    with store.reading() as session:
        assert run_view(session, find_run(session, "run-a")).base == expected
    enter(store, submission(0))
    set_base(store, "run-a", "run-a", 25)
    with store.reading() as session:
        view = base_view(session, find_run(session, "run-a"))
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


def is_first(store: Store, checkpoint: int) -> bool:
    with store.reading() as session:
        found = find_checkpoint(session, checkpoint)
        return bases.is_first(session, found, find_base(session, found))


def test_the_first_is_the_base_or_the_smallest_step(store: Store) -> None:
    """There nothing is forgotten yet, so a text loss above that of a guess is no finding."""
    enter(store, submission(50))
    assert is_first(store, 1), "as far as is known"
    enter(store, submission(25))
    enter(store, submission(25, variant="ema"))
    assert [is_first(store, number) for number in (1, 2, 3)] == [False, True, True]
    enter(store, submission(100, run="text"))
    enter(store, submission(300, run="text"))
    assert [is_first(store, number) for number in (4, 5)] == [True, False]
    set_base(store, "run-a", "text", 300)
    assert [is_first(store, number) for number in (1, 5)] == [False, True]
    enter(store, submission(25, identity=Identity(7, 7), replace=True))
    enter(store, submission(30, identity=Identity(8, 8)))
    assert [is_first(store, number) for number in (6, 7)] == [True, False]


def test_a_merge_is_told_whether_its_checkpoint_is_the_first(store: Store) -> None:
    enter(store, submission(0), suite())
    enter(store, submission(25), suite())
    told = []
    while assignment := next_shard(store):
        stages = {"plan": plan(1), "run": ran(), "merge": result(metric(1.0))}
        told.append((assignment.checkpoint_id, assignment.request.stage, assignment.request.is_first))
        assert store_result(store, assignment, stages[assignment.request.stage])
    assert sorted(entry for entry in told if entry[1] == "merge") == [(1, "merge", True), (2, "merge", False)]
