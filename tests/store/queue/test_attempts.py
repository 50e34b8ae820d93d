"""The queue by hand: the fence, failed attempts, looks at tasks that go on. A lost or doubled shard begins here."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from posts_and_results import act, ask, enter, looked, metric, plan, ran, result, set_spool_state, submission, suite
from queue_steps import at_once, begin, cancel, dispatched, evaluate_whole, lose, next_shard, retry, state, store_result
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import UnknownName, WrongState
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.data_folder import named_outputs
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue import transitions
from evalsvc.store.queue.attempts import Assignment, give_up, requeue_running, run_again, unwanted
from evalsvc.store.queue.stages import cancel_evaluation, fail_checkpoint, retry_evaluation
from evalsvc.store.session import Store
from evalsvc.store.tables import Attempt, Shard
from evalsvc.store.views import evaluation_view

DONE = ran(sum=1)


def values(store: Store) -> list[Any]:
    return [series.value for series in ask(store, read_history, "run-a").series]


def test_an_evaluation_goes_from_plan_over_run_to_merge(store: Store) -> None:
    evaluation, runs = begin(store)
    assert [(item.request.stage, item.request.shards) for item in runs] == [
        ("run", [{"index": 0, "units": 10}]),
        ("run", [{"index": 1, "units": 10}]),
    ]
    for index, item in enumerate(runs):
        store_result(store, item, ran(sum=index))
    merge = dispatched(store, "merge")
    assert merge.request.outputs == [ran(sum=0).output, ran(sum=1).output]
    assert state(store, evaluation) == "running"
    store_result(store, merge, result(metric(1.5)))
    assert values(store) == [[1.5]]
    assert next_shard(store) is None
    row = ask(store, find_evaluation, evaluation)
    assert row.state == "succeeded"
    assert row.created_at <= row.started_at <= row.finished_at
    assert row.created_at.tzinfo is not None


def test_a_shard_that_kills_its_worker_fails_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "FIRST_BACK_OFF", 0.0)
    poisoned, [poison, innocent] = begin(store)
    [other] = enter(store, submission(50), suite())
    current = poison
    for _ in range(3):
        lose(store, current)
        current = dispatched(store)
    assert state(store, poisoned) == "failed"
    assert store_result(store, innocent, DONE) is True, "the result of a shard that was running is kept"
    assert current.evaluation_id == other
    with store.reading() as session:
        assert find_evaluation(session, poisoned).error == {"code": "worker_died", "message": "it died"}
        outcomes = select(Attempt.outcome).where(Attempt.shard_id == poison.shard_id)
        assert session.scalars(outcomes).all() == ["worker_died"] * 3


def test_a_shard_waits_while_its_checkpoint_or_base_is_being_spooled(store: Store) -> None:
    """The trainer may delete the original as soon as the copy is ready, which would be in the middle of the shard."""
    enter(store, submission(0, spool="copy"), suite())
    enter(store, submission(25), suite())
    [other] = enter(store, submission(25, run="run-b"), suite())
    enter(store, submission(30, run="run-b", spool="copy"), suite())
    assert dispatched(store).evaluation_id == other, "neither this checkpoint nor its base is being copied"
    assert next_shard(store) is None
    for checkpoint in (1, 4):
        set_spool_state(store, checkpoint, "ready")
    requests = [dispatched(store).request for _ in range(3)]
    copies = {request.checkpoint.path: request.base and request.base.path for request in requests}
    first = "/data/spool/1/epoch_0.pt"
    assert copies == {"/data/spool/4/epoch_30.pt": None, "/checkpoints/epoch_25.pt": first, first: first}


def test_the_base_goes_along_with_every_shard(store: Store) -> None:
    enter(store, submission(0, layout={"text": {"size": 3}}), suite())
    evaluate_whole(store, metric(1.0))
    _, runs = begin(store)
    evaluate_whole(store, metric(1.0))
    expected = ("/checkpoints/epoch_0.pt", {"text": {"size": 3}}, "run 'run-a' step 0")
    for base in (runs[0].request.base, runs[1].request.base):
        assert (base.path, base.layout, base.label) == expected
    enter(store, submission(7, run="run-b"), suite())
    assert dispatched(store).request.base is None


def test_the_first_worker_s_digest_is_kept_for_the_later_ones(store: Store) -> None:
    for digest, item in zip("ab", begin(store)[1], strict=True):
        store_result(store, item, ShardResult(b"\x80", provenance={"checkpoint_sha256": digest * 64}))
    assert dispatched(store, "merge").request.checkpoint.sha256 == "a" * 64


LOST = ShardError("artifact_not_written", "it was not there")


def outputs_in_files(store: Store) -> tuple[int, list[OutputFile], Assignment]:
    """An evaluation whose run shards left files, and its merge, dispatched."""
    evaluation, runs = begin(store)
    files = [OutputFile(item.task_id, item.shard_id, item.attempt, "ab" * 32, 2**33) for item in runs]
    for item, file in zip(runs, files, strict=True):
        store_result(store, item, ShardResult(output=file))
    return evaluation, files, dispatched(store, "merge")


def test_a_row_may_name_the_file_of_its_output(store: Store) -> None:
    evaluation, files, merge = outputs_in_files(store)
    assert merge.request.outputs == files
    assert ask(store, named_outputs) == set(files)
    store_result(store, merge, result(metric(1.0)))
    assert state(store, evaluation) == "succeeded"
    assert ask(store, named_outputs) == set()


def test_files_of_a_replaced_checkpoint_are_orphans(store: Store) -> None:
    """Its evaluation can not be retried, so nobody would ever remove them."""
    outputs_in_files(store)
    enter(store, submission(identity=Identity(7, 7), replace=True))
    assert ask(store, named_outputs) == set()


def test_a_lost_output_is_made_again_before_the_merge(store: Store) -> None:
    evaluation, files, merge = outputs_in_files(store)
    assert act(store, run_again, merge, files[:1], LOST, max_attempts=3)
    assert not act(store, run_again, merge, files[1:], LOST, max_attempts=3), "the merge is not that attempt's any more"
    again = dispatched(store, "run")
    assert (again.shard_id, again.attempt) == (files[0].shard, 2)
    assert next_shard(store) is None, "the merge waits"
    store_result(store, again, DONE)
    evaluate_whole(store, metric(1.0))
    assert state(store, evaluation) == "succeeded"


def test_a_look_that_cannot_read_leaves_the_merge_to_find_out(store: Store) -> None:
    """Made again behind its back, the shard would be missing from a merge that waits already."""
    evaluation, [file, _], merge = outputs_in_files(store)
    with store.transaction() as session:
        session.add(Shard(task_id=merge.task_id, stage="look", index=0, payload={"shards": 1, "done": 10}))
    look = dispatched(store, "look")
    assert look.request.outputs == [file]
    assert act(store, run_again, look, [file], LOST, max_attempts=1)
    assert next_shard(store) is None
    store_result(store, merge, result(metric(1.0)))
    assert state(store, evaluation) == "succeeded"


def test_a_worker_loses_outputs_of_its_own_task_only(store: Store) -> None:
    """It names the shards itself, and requeued those of every task with the wrong ids."""
    _, files, merge = outputs_in_files(store)
    enter(store, submission(50), suite())
    other = dispatched(store)
    store_result(store, other, plan(1))
    with store.transaction() as session:
        named = [replace(files[0], shard=shard) for shard in (other.shard_id, 77)]
        assert run_again(session, merge, named, LOST, max_attempts=1)
        assert session.get_one(Shard, other.shard_id).state == "succeeded"


def test_an_output_that_is_lost_every_time_fails_its_task(store: Store) -> None:
    """A disk that loses what was written must not keep a worker busy for ever."""
    evaluation, files, merge = outputs_in_files(store)
    act(store, run_again, merge, files, LOST, max_attempts=1)
    assert state(store, evaluation) == "failed"
    assert next_shard(store) is None
    retry(store, evaluation)
    evaluate_whole(store, metric(1.0))
    assert state(store, evaluation) == "succeeded"


def test_a_finished_shard_costs_no_more_among_many(store: Store) -> None:
    """Each read all the others of its task: with a thousand shards that was most of the coordinator's time."""
    loaded: list[Shard] = []

    def count(shard: Shard, _context: object) -> None:
        loaded.append(shard)

    counts = []
    for shards in (3, 60):
        enter(store, submission(step=shards, run=f"run-{shards}"), suite(f"of-{shards}", limit=shards))
        for outcome in (plan(shards), DONE):
            assignment = dispatched(store)
            loaded.clear()
            event.listen(Shard, "load", count)
            assert store_result(store, assignment, outcome)
            event.remove(Shard, "load", count)
        counts.append(len(loaded))
        cancel(store, assignment.evaluation_id)
    assert counts[0] == counts[1] <= 3


def shard_states(store: Store, *assignments: Assignment) -> list[str]:
    with store.reading() as session:
        return [session.get_one(Shard, assignment.shard_id).state for assignment in assignments]


def test_what_ends_while_its_checkpoint_is_replaced_is_not_cancelled(store: Store) -> None:
    """On PostgreSQL the replacement read `running`, waited for the end, and wrote `cancelled` over it."""
    [evaluation] = enter(store, submission(), suite())
    other = submission(identity=Identity(size=7, mtime_ns=7), replace=True)

    def end(session: Session, evaluation: int) -> None:
        find_evaluation(session, evaluation).state = "succeeded"

    assert at_once(store, end, evaluation, lambda: enter(store, other, suite())) != [evaluation]
    assert state(store, evaluation) == "succeeded"


def test_a_retry_and_the_end_of_what_was_cancelled_may_come_at_once(store: Store) -> None:
    """On PostgreSQL the end read `cancelled` before the retry was committed, and left its shard so: it never ended."""
    evaluation, [run, _] = begin(store)
    cancel(store, evaluation)
    stopped = ShardResult(error=ShardError("cancelled", "stopped"))
    assert at_once(store, retry_evaluation, evaluation, lambda: store_result(store, run, stopped)) is True
    assert shard_states(store, run) == ["queued"]


def test_a_retry_and_a_start_of_the_service_may_come_at_once(store: Store) -> None:
    """On PostgreSQL the start read `cancelled` before the retry was committed, and left so what had run: as above."""
    evaluation, runs = begin(store)
    cancel(store, evaluation)
    assert at_once(store, retry_evaluation, evaluation, lambda: act(store, requeue_running, {})) == 2
    assert shard_states(store, *runs) == ["queued"] * 2


def test_what_is_cancelled_while_its_copy_fails_stays_so(store: Store) -> None:
    """On PostgreSQL the failure of the copy read `queued`, waited for the cancellation, and wrote over it."""
    [evaluation] = enter(store, submission(), suite())
    gone = ShardError("checkpoint_gone", "it could not be copied")
    at_once(store, cancel_evaluation, evaluation, lambda: act(store, fail_checkpoint, 1, gone))
    assert state(store, evaluation) == "cancelled"


def test_what_is_cancelled_while_it_is_dispatched_does_not_run(store: Store) -> None:
    """On PostgreSQL it was taken from before the cancellation, which its state then overwrote."""
    [evaluation] = enter(store, submission(), suite())
    assert at_once(store, cancel_evaluation, evaluation, lambda: next_shard(store)) is None
    assert state(store, evaluation) == "cancelled"


def test_what_is_over_cannot_be_cancelled_and_what_succeeded_cannot_be_retried(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite())
    with pytest.raises(WrongState, match="is queued; only failed"):
        retry(store, evaluation)
    evaluate_whole(store, metric(1.0))
    with pytest.raises(WrongState, match="is succeeded; only queued and running"):
        cancel(store, evaluation)
    with pytest.raises(WrongState, match="is succeeded; only failed"):
        retry(store, evaluation)
    with pytest.raises(UnknownName, match="there is no evaluation 77"):
        cancel(store, 77)


UNTIL = {"stderr": 0.05, "metric": "text"}


def begin_looks(store: Store, shards: int = 4, until: Mapping[str, Any] | None = None) -> int:
    """An evaluation of one planned task that is looked at after its first and its second shard, and at its end."""
    [evaluation] = enter(store, submission(), suite())
    store_result(store, dispatched(store), plan(shards, looks=(1, 2, shards), until=until))
    return evaluation


def run(store: Store, shards: int) -> None:
    for _ in range(shards):
        assignment = dispatched(store, "run")
        assert store_result(store, assignment, ran(sum=assignment.request.shards[0]["index"]))


def run_at_once(store: Store, shards: int) -> None:
    """Dispatch all run shards before the first one ends."""
    for item in [dispatched(store, "run") for _ in range(shards)]:
        store_result(store, item, ran())


def seen(stderr: float = 0.1) -> ShardResult:
    return ShardResult(looked(metric(1.5, stderr=stderr)))


def task_view(store: Store, evaluation: int) -> dict[str, Any]:
    with store.reading() as session:
        (task,) = evaluation_view(session, find_evaluation(session, evaluation), {}).tasks
        return task.model_dump()


def test_a_look_comes_before_the_shards_that_wait_and_shows_what_is_known_so_far(store: Store) -> None:
    evaluation = begin_looks(store)
    assert task_view(store, evaluation)["interim"] is None
    run(store, 1)
    look = dispatched(store, "look")
    assert (look.request.shards, look.request.outputs) == ([{"index": 0, "units": 10}], [ran(sum=0).output])
    store_result(store, look, seen())
    interim = task_view(store, evaluation)["interim"]
    assert (interim["done"], interim["metrics"][0]["value"]) == (10, 1.5)
    run(store, 1)
    store_result(store, dispatched(store, "look"), seen())
    assert task_view(store, evaluation)["interim"]["done"] == 20
    assert values(store) == [], "what is not the end is no history"
    run(store, 2)
    store_result(store, dispatched(store, "merge"), result(metric(2.5)))
    final = task_view(store, evaluation)
    assert (final["state"], final["interim"], final["shards"]["succeeded"]) == ("succeeded", None, 4)
    assert values(store) == [[2.5]]
    with store.reading() as session:
        assert set(session.scalars(select(Shard.output).where(Shard.stage != "plan"))) == {None}


def test_a_look_that_nobody_has_begun_is_not_waited_for_at_the_end(store: Store) -> None:
    begin_looks(store, shards=3)
    run_at_once(store, 3)
    store_result(store, dispatched(store, "merge"), result(metric(2.5)))
    with store.reading() as session:
        assert set(session.scalars(select(Shard.state).where(Shard.stage == "look"))) == {"skipped"}
    assert values(store) == [[2.5]]


@pytest.mark.parametrize("failure", ["error", "death"])
def test_a_look_that_fails_is_one_look_less(store: Store, failure: str) -> None:
    evaluation = begin_looks(store, until=UNTIL)
    run(store, 1)
    look = dispatched(store, "look")
    error = ShardError("non_finite", "NaN")
    if failure == "error":
        store_result(store, look, ShardResult(error=error))
    else:
        act(store, give_up, look, "worker_died", error, max_attempts=1)
    run(store, 1)
    store_result(store, dispatched(store, "look"), seen(math.nan))
    run(store, 2)
    store_result(store, dispatched(store, "merge"), result(metric(2.5)))
    assert task_view(store, evaluation)["state"] == "succeeded"


def test_enough_ends_the_task_and_stops_what_runs(store: Store) -> None:
    """The numbers rest on the shards of the look that was enough, however many had run by then."""
    evaluation = begin_looks(store, shards=5, until=UNTIL)
    first, second, third, fourth = (dispatched(store, "run") for _ in range(4))
    for item in (third, first, second):
        store_result(store, item, ran(sum=item.request.shards[0]["index"]))
    one, two = dispatched(store, "look"), next_shard(store)
    assert (two.request.stage, two.request.shards) == ("run", [{"index": 4, "units": 10}]), "the looks go in order"
    store_result(store, one, seen(0.06))
    enough = dispatched(store, "look")
    assert len(enough.request.outputs) == 2
    store_result(store, enough, seen(0.05))
    running = [item.shard_id for item in (first, fourth, two)]
    assert ask(store, unwanted, running) == {fourth.shard_id, two.shard_id}
    assert not store_result(store, fourth, ran(sum=3)), "its result is late"
    merge = dispatched(store, "merge")
    assert merge.request.outputs == [ran(sum=0).output, ran(sum=1).output]
    store_result(store, merge, result(metric(2.5, stderr=0.05)))
    task = task_view(store, evaluation)
    assert task["state"] == "succeeded"
    assert task["progress"]["done"] == task["progress"]["total"] == 20
    assert (task["shards"]["succeeded"], task["shards"]["skipped"]) == (2, 3)
    stopped = "after 20 of 50 sequences: the standard error of text, 0.05, is at most 0.05"
    assert task["provenance"]["notes"]["stopped"] == stopped
    assert len(task["provenance"]["shards"]) == 2
    assert values(store) == [[2.5]]
    assert next_shard(store) is None
    with store.reading() as session:
        assert None not in set(session.scalars(select(Attempt.outcome)))


def test_a_merge_waits_for_a_look_that_may_be_enough(store: Store) -> None:
    """Else the number of samples would depend on which worker was faster."""
    begin_looks(store, shards=3, until=UNTIL)
    run_at_once(store, 3)
    look = dispatched(store, "look")
    assert next_shard(store) is None
    assert act(store, requeue_running, {}) == 1
    again = dispatched(store, "look")
    assert not store_result(store, look, seen(0.01)), "an attempt that was lost"
    store_result(store, again, seen(0.01))
    assert len(dispatched(store, "merge").request.outputs) == 1


def test_a_cancelled_evaluation_is_not_looked_at(store: Store) -> None:
    evaluation = begin_looks(store)
    run(store, 1)
    cancel(store, evaluation)
    assert next_shard(store) is None
    assert task_view(store, evaluation)["interim"] is None
