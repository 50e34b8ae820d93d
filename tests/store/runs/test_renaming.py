"""Another name for a run: nothing is lost, and whatever named it still does."""

import pytest
from queue_steps import dispatched, enter, enter_virtual, measure, next_shard, plan, store_result, submission, suite

from evalsvc.errors import Conflict, UnknownName
from evalsvc.messages import ShardResult
from evalsvc.store.history.reading import read_history
from evalsvc.store.history.writing import history_tag
from evalsvc.store.lookup import find_checkpoint, find_run
from evalsvc.store.runs.base import base_view, name_base
from evalsvc.store.runs.deletion import rename_run
from evalsvc.store.runs.listing import run_view
from evalsvc.store.session import Store


def rename(store: Store, name: str = "run-a", new: str = "run-z") -> None:
    with store.transaction() as session:
        rename_run(session, name, new)


def test_its_history_goes_with_it(store: Store) -> None:
    measure(store, 25, 1.0)
    with store.reading() as session:
        before = history_tag(find_run(session, "run-a"), "1", "question")
    rename(store)
    with store.reading() as session:
        assert read_history(session, "run-z").series[0].value == [1.0]
        assert history_tag(find_run(session, "run-z"), "1", "question") != before
        with pytest.raises(UnknownName):
            find_run(session, "run-a")
    assert enter(store, submission(25, run="run-z"), suite()) == [1]  # the same post under the new name


def test_bases_and_expressions_name_it_anew(store: Store) -> None:
    enter(store, submission(25), suite())
    enter(store, submission(25, run="run-b"), suite())
    with store.transaction() as session:
        for run in ("run-a", "run-b"):
            name_base(session, find_run(session, run), "run-a", 25, "raw")
    enter_virtual(store, "mix", "lerp(run-b@25, run-a@25, 0.25)", suite())
    rename(store)
    with store.reading() as session:
        for run in ("run-z", "run-b"):
            view = base_view(session, find_run(session, run))
            assert (view.run, view.checkpoint) == ("run-z", 1)
        (checkpoint,) = run_view(session, find_run(session, "mix")).checkpoints
        assert checkpoint.uri == "lerp(run-b@25, run-z@25, 0.25)"
    while assignment := next_shard(store):
        virtual = assignment.request.checkpoint.virtual
        if virtual is not None:
            assert set(virtual.parents) == {"run-b@25", "run-z@25"}
            break
        assert store_result(store, assignment, ShardResult(output=plan(0).output))
    else:
        pytest.fail("the virtual checkpoint was not dispatched")


def test_a_worker_that_knows_the_old_name_does_no_harm(store: Store) -> None:
    """Its provenance has the parents' digests by their old names."""
    enter(store, submission(25))
    enter(store, submission(50))
    enter_virtual(store, "mix", "lerp(run-a@25, run-a@50, 0.5)", suite())
    assignment = dispatched(store)
    rename(store)
    provenance = {"checkpoint_sha256": "a" * 64, "parents_sha256": {"run-a@25": "b" * 64, "run-a@50": "c" * 64}}
    assert store_result(store, assignment, ShardResult(output=plan(1).output, provenance=provenance))
    with store.reading() as session:
        assert find_checkpoint(session, 3).sha256 == "a" * 64
        assert find_checkpoint(session, 1).sha256 is None


def test_a_name_that_is_taken(store: Store) -> None:
    enter(store, submission(25))
    enter(store, submission(25, run="run-z"))
    with pytest.raises(Conflict, match="a run 'run-z' exists"):
        rename(store)
    rename(store, "run-a", "run-a")
