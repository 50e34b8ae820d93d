"""The queue by hand: order, the fence, failed attempts. A lost or doubled shard begins here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from posts_and_results import metric, plan, ran, result, submission, suite
from queue_steps import (
    act,
    ask,
    at_once,
    begin,
    cancel,
    dispatched,
    enter,
    evaluate_whole,
    lose,
    measure,
    next_shard,
    retry,
    set_spool_state,
    state,
    store_result,
)
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
from evalsvc.store.queue.attempts import Assignment, requeue_running, run_again
from evalsvc.store.queue.stages import cancel_evaluation, fail_checkpoint, retry_evaluation
from evalsvc.store.session import Store
from evalsvc.store.tables import Attempt, Evaluation, Shard

DONE = ran(sum=1)


def test_an_evaluation_goes_from_plan_over_run_to_merge(store: Store) -> None:
    evaluation, runs = begin(store)
    assert [(item.request.stage, item.request.shards) for item in runs] == [
        ("run", [{"index": 0, "units": 10}]),
        ("run", [{"index": 1, "units": 10}]),
    ]
    for index, item in enumerate(runs):
        store_result(store, item, ran(sum=index))
    merge = dispatched(store)
    assert merge.request.stage == "merge"
    assert merge.request.outputs == [ran(sum=0).output, ran(sum=1).output]
    assert state(store, evaluation) == "running"
    store_result(store, merge, result(metric(1.5)))
    assert state(store, evaluation) == "succeeded"
    assert ask(store, read_history, "run-a").series[0].value == [1.5]
    assert next_shard(store) is None


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
        outcomes = session.scalars(
            select(Attempt.outcome).where(Attempt.shard_id == poison.shard_id).order_by(Attempt.number)
        )
        assert outcomes.all() == ["worker_died"] * 3


def test_what_ends_while_its_checkpoint_is_replaced_is_not_cancelled(store: Store) -> None:
    """On PostgreSQL the replacement read `running`, waited for the end, and wrote `cancelled` over it."""
    [evaluation] = enter(store, submission(), suite())
    other = submission(identity=Identity(size=7, mtime_ns=7), replace=True)

    def end(session: Session) -> None:
        find_evaluation(session, evaluation).state = "succeeded"

    assert at_once(store, end, lambda: enter(store, other, suite())) != [evaluation]
    assert state(store, evaluation) == "succeeded"


def test_what_is_still_being_spooled_is_not_dispatched(store: Store) -> None:
    enter(store, submission(spool="copy"), suite())
    assert next_shard(store) is None
    set_spool_state(store, 1, "ready")
    assignment = dispatched(store)
    assert Path(assignment.request.checkpoint.path) == Path("/data/spool/1/epoch_25.pt")


def test_the_base_goes_along_with_every_shard(store: Store) -> None:
    measure(store, 0, 1.0, layout={"text": {"size": 3}})
    _, runs = begin(store)
    evaluate_whole(store, metric(1.0))
    for base in (runs[0].request.base, runs[1].request.base):
        assert (base.path, base.layout, base.label) == (
            "/checkpoints/epoch_0.pt",
            {"text": {"size": 3}},
            "run 'run-a' step 0",
        )
    enter(store, submission(7, run="run-b"), suite())
    alone = dispatched(store)
    assert alone.request.base is None


def test_a_shard_waits_while_its_base_is_being_spooled(store: Store) -> None:
    """The trainer may delete the original as soon as the copy is ready, which would be in the middle of the shard."""
    enter(store, submission(0, spool="copy"))
    enter(store, submission(25), suite())
    [other] = enter(store, submission(25, run="run-b"), suite())
    assignment = dispatched(store)
    assert assignment.evaluation_id == other, "what has another base does not wait"
    assert next_shard(store) is None
    set_spool_state(store, 1, "ready")
    assignment = dispatched(store)
    assert assignment.request.base.path == "/data/spool/1/epoch_0.pt"


def test_the_first_worker_s_digest_is_kept_for_the_later_ones(store: Store) -> None:
    _, [first, second] = begin(store)
    store_result(store, first, ShardResult(b"\x80", provenance={"checkpoint_sha256": "a" * 64}))
    store_result(store, second, ShardResult(b"\x80", provenance={"checkpoint_sha256": "b" * 64}))
    merge = dispatched(store)
    assert merge.request.checkpoint.sha256 == "a" * 64


def test_an_evaluation_keeps_its_times(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite())
    evaluate_whole(store, metric(1.0))
    with store.reading() as session:
        row = session.get_one(Evaluation, evaluation)
        assert row.started_at is not None
        assert row.finished_at is not None
        assert row.created_at <= row.started_at <= row.finished_at
        assert row.created_at.tzinfo is not None


LOST = ShardError("artifact_not_written", "it was not there")


def outputs_in_files(store: Store) -> tuple[int, list[OutputFile], Assignment]:
    """An evaluation whose run shards left files, and its merge, dispatched."""
    evaluation, runs = begin(store)
    files = [OutputFile(item.task_id, item.shard_id, item.attempt, "ab" * 32, 2**33) for item in runs]
    for item, file in zip(runs, files, strict=True):
        store_result(store, item, ShardResult(output=file))
    merge = dispatched(store)
    return evaluation, files, merge


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
    with store.transaction() as session:
        assert run_again(session, merge, files[:1], LOST, max_attempts=3)
        assert not run_again(session, merge, files[1:], LOST, max_attempts=3), (
            "the merge is not that attempt's any more"
        )
    again = dispatched(store)
    assert (again.request.stage, again.shard_id, again.attempt) == ("run", files[0].shard, 2)
    assert next_shard(store) is None, "the merge waits"
    store_result(store, again, DONE)
    evaluate_whole(store, metric(1.0))
    assert state(store, evaluation) == "succeeded"


def test_a_look_that_cannot_read_leaves_the_merge_to_find_out(store: Store) -> None:
    """Made again behind its back, the shard would be missing from a merge that waits already."""
    evaluation, [file, _], merge = outputs_in_files(store)
    with store.transaction() as session:
        payload = {"shards": 1, "done": 10}
        session.add(Shard(task_id=merge.task_id, stage="look", index=0, payload=payload))
    look = dispatched(store)
    assert (look.request.stage, look.request.outputs) == ("look", [file])
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


def queue_again(store: Store) -> int:
    return act(store, requeue_running, {})


def retrying(evaluation: int) -> Callable[[Session], None]:
    return lambda session: retry_evaluation(session, evaluation)


def cancelling(evaluation: int) -> Callable[[Session], None]:
    return lambda session: cancel_evaluation(session, evaluation)


def shard_states(store: Store, *assignments: Assignment) -> list[str]:
    with store.reading() as session:
        return [session.get_one(Shard, assignment.shard_id).state for assignment in assignments]


def test_a_retry_and_the_end_of_what_was_cancelled_may_come_at_once(store: Store) -> None:
    """On PostgreSQL the end read `cancelled` before the retry was committed, and left its shard so: it never ended."""
    evaluation, [run, _] = begin(store)
    cancel(store, evaluation)
    stopped = ShardResult(error=ShardError("cancelled", "stopped"))
    assert at_once(store, retrying(evaluation), lambda: store_result(store, run, stopped)) is True
    assert shard_states(store, run) == ["queued"]


def test_a_retry_and_a_start_of_the_service_may_come_at_once(store: Store) -> None:
    """On PostgreSQL the start read `cancelled` before the retry was committed, and left so what had run: as above."""
    evaluation, runs = begin(store)
    cancel(store, evaluation)
    assert at_once(store, retrying(evaluation), lambda: queue_again(store)) == 2
    assert shard_states(store, *runs) == ["queued"] * 2


def test_what_is_cancelled_while_its_copy_fails_stays_so(store: Store) -> None:
    """On PostgreSQL the failure of the copy read `queued`, waited for the cancellation, and wrote over it."""
    [evaluation] = enter(store, submission(), suite())

    def fail() -> None:
        act(store, fail_checkpoint, 1, ShardError("checkpoint_gone", "it could not be copied"))

    at_once(store, cancelling(evaluation), fail)
    assert state(store, evaluation) == "cancelled"


def test_what_is_cancelled_while_it_is_dispatched_does_not_run(store: Store) -> None:
    """On PostgreSQL it was taken from before the cancellation, which its state then overwrote."""
    [evaluation] = enter(store, submission(), suite())
    assert at_once(store, cancelling(evaluation), lambda: next_shard(store)) is None
    assert state(store, evaluation) == "cancelled"


def test_what_is_over_cannot_be_cancelled_and_what_succeeded_cannot_be_retried(store: Store) -> None:
    [evaluation] = enter(store, submission(), suite())
    with store.transaction() as session, pytest.raises(WrongState, match="is queued; only failed"):
        retry_evaluation(session, evaluation)
    evaluate_whole(store, metric(1.0))
    with store.transaction() as session, pytest.raises(WrongState, match="is succeeded; only queued and running"):
        cancel_evaluation(session, evaluation)
    with store.transaction() as session, pytest.raises(WrongState, match="is succeeded; only failed"):
        retry_evaluation(session, evaluation)
    with store.transaction() as session, pytest.raises(UnknownName, match="there is no evaluation 77"):
        cancel_evaluation(session, 77)
