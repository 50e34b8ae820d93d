"""Deleting a run or a checkpoint: all of it and nothing else, and nothing that comes late brings it back."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from history_reference import Point, history_of, write
from posts_and_results import kept_artifact, metric, plan, submission, suite
from queue_steps import (
    act,
    ask,
    dispatched,
    enter,
    enter_virtual,
    evaluate_whole,
    measure,
    next_shard,
    set_base,
    store_result,
)

from evalsvc.errors import Conflict, UnknownName, WrongState
from evalsvc.messages import ShardResult
from evalsvc.store.data_folder import named_artifacts, named_items
from evalsvc.store.history.reading import read_history
from evalsvc.store.history.writing import history_tag
from evalsvc.store.lookup import find_checkpoint, find_run, hold
from evalsvc.store.queue.attempts import finish, unwanted
from evalsvc.store.runs.base import base_view
from evalsvc.store.runs.deletion import Deleted, delete_checkpoint, delete_run, rename_run
from evalsvc.store.runs.listing import run_view
from evalsvc.store.session import Store
from evalsvc.store.tables import Base, Checkpoint, Protocol

NO_RUNS = ("attempt_totals", "protocols", "suites", "tokens")
"""Tables whose rows belong to no run."""


def delete(store: Store, run: str = "run-a", cancel: bool = False) -> Deleted:
    return act(store, delete_run, run, cancel)


def rows(store: Store) -> dict[str, int]:
    """How many rows each table has, of those that have any."""
    with store.reading() as session:
        counts = {
            name: session.scalar(sa.select(sa.func.count()).select_from(table))
            for name, table in Base.metadata.tables.items()
        }
    return {name: count for name, count in counts.items() if count and name not in NO_RUNS}


def test_nothing_of_it_is_left(store: Store) -> None:
    enter(store, submission(25), suite(), suite("other", limit=2, tasks=2))
    enter(store, submission(50), suite())
    evaluate_whole(store, metric(1.0), shards=3, items=[{"index": 0}])
    enter_virtual(store, "run-a", "lerp(run-a@25, run-a@50, 0.5)", suite(), variant="mix")
    evaluate_whole(store, metric(2.0))
    write(store, {"fid": [Point(5, 1.0, None, None)]})
    set_base(store, "run-a", "run-a", 25)
    deleted = delete(store)
    assert (deleted.checkpoints, deleted.evaluations) == (3, 4)
    assert rows(store) == {}


def test_it_waits_for_a_result_that_is_being_stored(store: Store) -> None:
    """On PostgreSQL each had what the other waited for, and one of the two failed."""
    enter(store, submission(25), suite())
    assignment = dispatched(store)
    with ThreadPoolExecutor(1) as threads:
        with store.transaction() as session:
            hold(session, assignment.evaluation_id)
            deleted = threads.submit(delete, store, cancel=True)
            time.sleep(0.5)
            assert finish(session, assignment, plan(3)) is True
        assert deleted.result(30).evaluations == 1
    assert rows(store) == {}


def test_nothing_else_goes(store: Store) -> None:
    for run in ("run-a", "run-b"):
        measure(store, 25, 1.0, run=run)
    before = rows(store)
    assert all(count % 2 == 0 for count in before.values())
    deleted = delete(store)
    assert (deleted.run, deleted.checkpoints, deleted.evaluations) == ("run-a", 1, 1)
    assert (deleted.values, deleted.artifacts) == (1, 0)
    assert rows(store) == {name: count // 2 for name, count in before.items()}
    with store.reading() as session:
        assert read_history(session, "run-b").series[0].value == [1.0]
        assert session.scalar(sa.select(sa.func.count()).select_from(Protocol)) == 1


def test_what_is_not_over_is_in_the_way_unless_it_is_cancelled(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite())
    with pytest.raises(WrongState, match=rf"has unfinished evaluations \({evaluation}\); .*cancel=true"):
        delete(store)
    delete(store, cancel=True)
    assert rows(store) == {}
    assert next_shard(store) is None


@pytest.mark.parametrize("posted_again", [False, True])
def test_a_late_result_is_not_stored(store: Store, posted_again: bool) -> None:
    """SQLite would give the next shard the id of the deleted one, and the late result would be taken for its."""
    enter(store, submission(), suite())
    running = dispatched(store)
    delete(store, cancel=True)
    if posted_again:
        enter(store, submission(50), suite())
        again = dispatched(store)
        assert again.key != running.key
        assert again.shard_id > running.shard_id
    assert ask(store, unwanted, [running.shard_id]) == {running.shard_id}
    assert store_result(store, running, plan(2)) is False
    assert rows(store).get("shards", 0) == posted_again


def test_ids_do_not_come_back(store: Store) -> None:
    """A browser keeps an artifact for ever under its id, and a client waits for an evaluation by its id."""
    first = enter(store, submission(25), suite(tasks=3), suite("other", limit=2))
    delete(store, cancel=True)
    second = enter(store, submission(25), suite(tasks=3), suite("other", limit=2))
    assert min(second) > max(first)
    assert second == sorted(second)
    delete(store, cancel=True)
    third = enter(store, submission(25), suite())
    assert min(third) > max(second)
    evaluate_whole(store, metric(1.0))
    assert history_of(store).series[0].value == [1.0]


def test_other_runs_that_need_it_are_named(store: Store) -> None:
    enter(store, submission(25), suite())
    enter(store, submission(25, run="run-b"), suite())
    set_base(store, "run-b", "run-a", 25)
    with pytest.raises(Conflict, match="is the base of run-b; name another base first"):
        delete(store, cancel=True)
    with store.transaction() as session:
        find_run(session, "run-b").base = None
    enter_virtual(store, "mix", "lerp(run-a@25, run-b@25, 0.5)", suite())
    with pytest.raises(Conflict, match="virtual checkpoints are computed from run 'run-a'; delete them first: mix@30"):
        delete(store, cancel=True)
    delete(store, "mix", cancel=True)
    delete(store, cancel=True)
    assert rows(store)["runs"] == 1


def test_contents_that_others_name_are_still_named(store: Store) -> None:
    for run, own in (("run-a", "a"), ("run-b", "b")):
        enter(store, submission(25, run=run), suite())
        artifacts = [kept_artifact("c" * 64), kept_artifact(own * 64, "own")]
        evaluate_whole(store, metric(1.0), artifacts=artifacts, items="d" * 64)
    deleted = delete(store)
    assert sorted(deleted.artifact_contents) == ["a" * 64, "c" * 64]
    assert deleted.item_contents == ["d" * 64]
    with store.reading() as session:
        assert named_artifacts(session, deleted.artifact_contents) == {"c" * 64}
        assert named_artifacts(session) == {"b" * 64, "c" * 64}
        assert named_items(session, deleted.item_contents) == {"d" * 64}


def delete_step(store: Store, step: int, cancel: bool = False, variant: str = "raw") -> Deleted:
    """Delete the checkpoints of run-a at a step, replaced ones too; what was deleted with the last one."""
    query = sa.select(Checkpoint.id).where(Checkpoint.step == step, Checkpoint.variant == variant)
    with store.transaction() as session:
        run = find_run(session, "run-a").id
        deleted = [delete_checkpoint(session, found, cancel) for found in session.scalars(query.filter_by(run_id=run))]
    return deleted[-1]


def test_of_a_checkpoint_nothing_is_left_and_nothing_else_goes(store: Store) -> None:
    for step in (0, 25):
        enter(store, submission(step), suite(), suite("other", limit=2, tasks=2))
        evaluate_whole(store, metric(1.0), items=[{"index": 0}], artifacts=[kept_artifact("c" * 64)])
    with store.transaction() as session:
        session.execute(sa.update(Checkpoint).values(spool_state="released"))
    before = rows(store)
    deleted = delete_step(store, 25)
    assert (deleted.run, deleted.checkpoints, deleted.evaluations) == ("run-a", 1, 2)
    assert (deleted.values, deleted.artifacts, len(deleted.tasks)) == (1, 3, 3)
    assert [path for _, path in deleted.spooled] == ["/checkpoints/epoch_25.pt"]
    kept = {name: count if name in ("runs", "series") else count // 2 for name, count in before.items()}
    assert rows(store) == kept
    assert history_of(store).series[0].x == [0]


def test_a_series_goes_with_its_last_measured_value_and_imported_values_stay(store: Store) -> None:
    """A curve without a point would be in every table for ever."""
    measure(store, 0, 1.0)
    write(store, {"fid": [Point(0, 9.0, None, None)]})
    version = ask(store, find_run, "run-a").history_version
    assert delete_step(store, 0).values == 1
    with store.reading() as session:
        [series] = read_history(session, "run-a").series
        assert (series.metric, series.value) == ("fid", [9.0])
        assert find_run(session, "run-a").history_version > version, "who has kept the history must read it again"


def test_a_checkpoint_that_waits_is_deleted_only_if_that_is_meant(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite())
    with pytest.raises(
        WrongState, match=rf"checkpoint 1 \(run-a@25\) has unfinished evaluations \({evaluation}\); .*cancel=true"
    ):
        delete_step(store, 25)
    running = dispatched(store)
    delete_step(store, 25, cancel=True)
    enter(store, submission(), suite())
    assert store_result(store, running, plan(2)) is False


def test_a_base_stays(store: Store) -> None:
    """Named by its own run, by another one, or by nobody as long as others are compared with it."""
    for step in (0, 25):
        enter(store, submission(step), suite())
    enter(store, submission(25, run="run-b"), suite())
    evaluate_whole(store, metric(1.0))
    with pytest.raises(Conflict, match=r"checkpoint 1 \(run-a@0\) is the base of run-a; name another base first"):
        delete_step(store, 0)
    for run in ("run-a", "run-b"):
        set_base(store, run, "run-a", 25)
    assert delete_step(store, 0).checkpoints == 1
    with pytest.raises(Conflict, match=r"run-a@25\) is the base of run-a, run-b; .* \(PUT /v1/runs/run-a/base\)"):
        delete_step(store, 25)
    with store.transaction() as session:
        find_run(session, "run-a").base = find_run(session, "run-b").base = None
    assert delete_step(store, 25).checkpoints == 1


def test_step_0_is_no_base_of_what_has_a_step_0_of_its_own(store: Store) -> None:
    for variant in ("raw", "ema"):
        enter(store, submission(0, variant=variant), suite())
    evaluate_whole(store, metric(1.0))
    assert delete_step(store, 0, variant="ema").checkpoints == 1
    assert delete_step(store, 0).checkpoints == 1, "nothing is compared with it"


def test_a_parent_stays_until_its_children_are_gone(store: Store) -> None:
    for step in (25, 50):
        enter(store, submission(step), suite())
    enter_virtual(store, "run-a", "lerp(run-a@25, run-a@50, 0.5)", suite(), variant="mix")
    evaluate_whole(store, metric(1.0))
    with pytest.raises(
        Conflict, match=r"virtual checkpoints are computed from checkpoint 1 \(run-a@25\); .*: run-a@30:mix"
    ):
        delete_step(store, 25)
    delete_step(store, 30, variant="mix")
    assert rows(store).get("checkpoint_parents") is None
    assert delete_step(store, 25).checkpoints == 1


def test_a_replaced_checkpoint_is_deleted_with_its_record_alone(store: Store) -> None:
    measure(store, 25, 1.0)
    measure(store, 25, 2.0, uri="/other.pt", replace=True)
    assert act(store, delete_checkpoint, 1, cancel=False).values == 0
    assert history_of(store).series[0].value == [2.0]


def rename(store: Store, name: str = "run-a", new: str = "run-z") -> None:
    act(store, rename_run, name, new)


def test_its_history_goes_with_it(store: Store) -> None:
    measure(store, 25, 1.0)
    before = history_tag(ask(store, find_run, "run-a"), "1", "question")
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
    for run in ("run-a", "run-b"):
        set_base(store, run, "run-a", 25)
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
