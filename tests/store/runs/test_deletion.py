"""Deleting a run or a checkpoint: all of it and nothing else, and nothing that comes late brings it back."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from history_reference import Point, history_of, write
from posts_and_results import act, ask, enter, enter_virtual, kept_artifact, metric, plan, set_base, submission, suite
from queue_steps import dispatched, evaluate_whole, measure, next_shard, store_result

from evalsvc.errors import Conflict, UnknownName, WrongState
from evalsvc.messages import ShardResult
from evalsvc.store.data_folder import named_artifacts, named_items
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


def delete_step(store: Store, step: int, cancel: bool = False, variant: str = "raw") -> Deleted:
    """Delete the checkpoints of run-a at a step, replaced ones too; what was deleted with the last one."""
    query = sa.select(Checkpoint.id).where(Checkpoint.step == step, Checkpoint.variant == variant)
    with store.transaction() as session:
        run = find_run(session, "run-a").id
        deleted = [delete_checkpoint(session, found, cancel) for found in session.scalars(query.filter_by(run_id=run))]
    return deleted[-1]


def delete_25(store: Store, cancel: bool = False) -> Deleted:
    return delete_step(store, 25, cancel)


def name_no_base(store: Store, *runs: str) -> None:
    with store.transaction() as session:
        for run in runs:
            find_run(session, run).base = None


def rows(store: Store) -> dict[str, int]:
    """How many rows each table has, of those that have any."""
    count = {name: sa.select(sa.func.count()).select_from(table) for name, table in Base.metadata.tables.items()}
    with store.reading() as session:
        counts = {name: session.scalar(query) for name, query in count.items()}
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
    assert history_of(store, "run-b").series[0].value == [1.0]
    with store.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Protocol)) == 1


@pytest.mark.parametrize("posted_again", [False, True])
def test_a_late_result_is_not_stored(store: Store, posted_again: bool) -> None:
    """SQLite would give the next shard the id of the deleted one, and the late result would be taken for its."""
    enter(store, submission(), suite())
    running = dispatched(store)
    delete(store, cancel=True)
    assert next_shard(store) is None
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


@pytest.mark.parametrize(
    ("remove", "what", "based"),
    [(delete, "run 'run-a'", "run-b"), (delete_25, r"checkpoint 1 \(run-a@25\)", "run-a, run-b")],
    ids=["run", "checkpoint"],
)
def test_what_is_in_the_way_is_named(store: Store, remove: Callable[..., Deleted], what: str, based: str) -> None:
    """Evaluations that are not over, unless it is meant; other runs' base; and what is computed from it."""
    [evaluation] = enter(store, submission(25), suite())
    enter(store, submission(25, run="run-b"), suite())
    with pytest.raises(WrongState, match=rf"{what} has unfinished evaluations \({evaluation}\); .*cancel=true"):
        remove(store)
    for run in ("run-a", "run-b"):
        set_base(store, run, "run-a", 25)
    based_on = rf"{what} is the base of {based}; name another base first \(PUT /v1/runs/{based.split(',')[0]}/base\)"
    with pytest.raises(Conflict, match=based_on):
        remove(store, cancel=True)
    name_no_base(store, "run-a", "run-b")
    enter_virtual(store, "mix", "lerp(run-a@25, run-b@25, 0.5)", suite())
    with pytest.raises(Conflict, match=f"virtual checkpoints are computed from {what}; delete them first: mix@30"):
        remove(store, cancel=True)
    delete(store, "mix", cancel=True)
    assert rows(store).get("checkpoint_parents") is None
    running = dispatched(store)
    remove(store, cancel=True)
    assert rows(store)["checkpoints"] == 1
    assert store_result(store, running, plan(2)) is False


def test_contents_that_others_name_are_still_named(store: Store) -> None:
    for run, own in (("run-a", "a"), ("run-b", "b")):
        enter(store, submission(25, run=run), suite())
        artifacts = [kept_artifact("c" * 64), kept_artifact(own * 64, "own")]
        evaluate_whole(store, metric(1.0), artifacts=artifacts, items="d" * 64)
    deleted = delete(store)
    assert sorted(deleted.artifact_contents) == ["a" * 64, "c" * 64]
    assert deleted.item_contents == ["d" * 64]
    assert ask(store, named_artifacts, deleted.artifact_contents) == {"c" * 64}
    assert ask(store, named_artifacts) == {"b" * 64, "c" * 64}
    assert ask(store, named_items, deleted.item_contents) == {"d" * 64}


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
    assert rows(store) == {name: count if name in ("runs", "series") else count // 2 for name, count in before.items()}
    assert history_of(store).series[0].x == [0]


def test_a_series_goes_with_its_last_measured_value_and_imported_values_stay(store: Store) -> None:
    """A curve without a point would be in every table for ever."""
    measure(store, 0, 1.0)
    write(store, {"fid": [Point(0, 9.0, None, None)]})
    version = ask(store, find_run, "run-a").history_version
    assert delete_step(store, 0).values == 1
    [series] = history_of(store).series
    assert (series.metric, series.value) == ("fid", [9.0])
    newer = ask(store, find_run, "run-a").history_version
    assert newer > version, "who has kept the history must read it again"


def test_step_0_stays_as_long_as_others_are_compared_with_it(store: Store) -> None:
    for step in (0, 25):
        enter(store, submission(step), suite())
    enter(store, submission(0, variant="ema"), suite())
    evaluate_whole(store, metric(1.0))
    assert delete_step(store, 0, variant="ema").checkpoints == 1, "the base of nothing else"
    with pytest.raises(Conflict, match=r"checkpoint 1 \(run-a@0\) is the base of run-a; name another base first"):
        delete_step(store, 0)
    set_base(store, "run-a", "run-a", 25)
    assert delete_step(store, 0).checkpoints == 1


def test_step_0_is_no_base_of_what_has_a_step_0_of_its_own(store: Store) -> None:
    for variant in ("raw", "ema"):
        enter(store, submission(0, variant=variant))
    assert delete_step(store, 0).checkpoints == 1, "nothing is compared with it"


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
    assert history_of(store, "run-z").series[0].value == [1.0]
    assert history_tag(ask(store, find_run, "run-z"), "1", "question") != before
    with pytest.raises(UnknownName):
        ask(store, find_run, "run-a")
    assert enter(store, submission(25, run="run-z"), suite()) == [1], "the same post under the new name"
    enter(store, submission(25))
    with pytest.raises(Conflict, match="a run 'run-z' exists"):
        rename(store)
    rename(store, "run-a", "run-a")


def test_bases_and_expressions_name_it_anew(store: Store) -> None:
    for run in ("run-a", "run-b"):
        enter(store, submission(25, run=run))
        set_base(store, run, "run-a", 25)
    enter_virtual(store, "mix", "lerp(run-b@25, run-a@25, 0.25)", suite())
    rename(store)
    with store.reading() as session:
        for run in ("run-z", "run-b"):
            view = base_view(session, find_run(session, run))
            assert (view.run, view.checkpoint) == ("run-z", 1)
        (checkpoint,) = run_view(session, find_run(session, "mix")).checkpoints
        assert checkpoint.uri == "lerp(run-b@25, run-z@25, 0.25)"
    assert set(dispatched(store).request.checkpoint.virtual.parents) == {"run-b@25", "run-z@25"}


def test_a_worker_that_knows_the_old_name_does_no_harm(store: Store) -> None:
    """Its provenance has the parents' digests by their old names."""
    enter(store, submission(25))
    enter(store, submission(50))
    enter_virtual(store, "mix", "lerp(run-a@25, run-a@50, 0.5)", suite())
    assignment = dispatched(store)
    rename(store)
    provenance = {"checkpoint_sha256": "a" * 64, "parents_sha256": {"run-a@25": "b" * 64, "run-a@50": "c" * 64}}
    assert store_result(store, assignment, ShardResult(output=plan(1).output, provenance=provenance))
    assert [ask(store, find_checkpoint, number).sha256 for number in (3, 1)] == ["a" * 64, None]
