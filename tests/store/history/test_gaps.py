"""Why a step has no values: each reason, where there are other values, and no reason where nothing is missing."""

from collections.abc import Sequence

import sqlalchemy as sa
from history_reference import Point, history_of, write
from posts_and_results import act, ask, enter, metric, plan, ran, result, submission, submit_due, suite
from queue_steps import cancel, dispatched, evaluate_whole, measure, next_shard, retry, store_result

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.documents.history import Gap
from evalsvc.store.history.buckets import read_buckets
from evalsvc.store.history.gaps import LONGEST, MOST, gaps_mark
from evalsvc.store.history.reading import read_history, read_summary
from evalsvc.store.history.series import WHOLE, Window
from evalsvc.store.lookup import find_run
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation, now


def gaps(store: Store, names: Sequence[str] = (), window: Window = WHOLE, run: str = "run-a") -> list[Gap]:
    return history_of(store, run, names=names, window=window).gaps


def why(store: Store, names: Sequence[str] = ()) -> list[tuple[int, str]]:
    return [(gap.step, gap.why) for gap in gaps(store, names)]


def fail(store: Store, message: str = "out of luck") -> None:
    """Fail the shard that is next, and so its task and its evaluation."""
    store_result(store, dispatched(store), ShardResult(None, ShardError("internal_error", message)))


def test_each_reason(store: Store) -> None:
    measure(store, 10, 1.0)
    enter(store, submission(20), suite())
    fail(store, "the file is gone")
    enter(store, submission(30), suite())
    cancel(store, 3)
    enter(store, submission(40), suite())
    assert [(gap.step, gap.variant, gap.suite, gap.why, gap.message) for gap in gaps(store)] == [
        (20, "raw", "quick", "failed", "the file is gone"),
        (30, "raw", "quick", "cancelled", "cancelled by request"),
        (40, "raw", "quick", "pending", "the evaluation waits in the queue"),
    ]
    dispatched(store)
    assert gaps(store)[-1].message == "the evaluation runs"


def test_what_the_plan_dropped_is_skipped(store: Store) -> None:
    measure(store, 10, 1.0)
    with store.transaction() as session:
        find_run(session, "run-a").plan = {"suites": [{"suite": "quick", "every": 1}], "when_behind": "newest"}
    for step in (20, 30):
        act(store, submit_due, submission(step))
    skipped, pending = gaps(store)
    assert (skipped.step, skipped.why, pending.why) == (20, "skipped", "pending")
    assert skipped.message == "skipped, since step 30 was posted and the plan says when_behind: newest"


def test_all_three_answers_have_them_and_pages_once(store: Store) -> None:
    for step in (10, 11):
        measure(store, step, 1.0)
    enter(store, submission(20), suite())
    answers = [ask(store, read, "run-a") for read in (read_history, read_buckets, read_summary)]
    assert [[gap.step for gap in answer.gaps] for answer in answers] == [[20]] * 3
    assert not any(answer.more_gaps for answer in answers)
    first = history_of(store, limit=1)
    second = history_of(store, limit=1, cursor=first.next_cursor)
    assert (len(first.gaps), len(second.gaps)) == (1, 0)


def test_without_values_of_others_nothing_is_missing(store: Store) -> None:
    """Another suite, another run, or another variant has values: this one never had."""
    enter(store, submission(20), suite())
    fail(store)
    assert gaps(store) == []
    measure(store, 10, 1.0, limit=7)
    measure(store, 10, 1.0, variant="ema")
    measure(store, 10, 1.0, run="run-b")
    enter(store, submission(20, variant="ema"), suite("other", limit=9))
    assert gaps(store) == []


def test_a_value_from_elsewhere_closes_the_gap(store: Store) -> None:
    """Another evaluation, or an import."""
    measure(store, 10, 1.0)
    for step in (20, 30):
        enter(store, submission(step), suite())
        fail(store)
    assert why(store) == [(20, "failed"), (30, "failed")]
    retry(store, 2)
    assert why(store) == [(20, "pending"), (30, "failed")]
    evaluate_whole(store, metric(2.0))
    assert why(store) == [(30, "failed")]
    write(store, {"loss/text": [Point(30, 3.0, None, None)]})
    assert why(store) == []


def test_of_a_partly_failed_evaluation_only_what_is_missing(store: Store) -> None:
    """Of two tasks, `loss-0` gives loss/text, and `loss-1` gives loss/image, and fails at step 20."""
    failed = ShardResult(None, ShardError("out_of_memory_for_good", "too large"))
    for step in (10, 20):
        enter(store, submission(step), suite(tasks=2))
        while assignment := next_shard(store):
            is_image = assignment.request.task.name == "loss-1"
            merged = result(metric(1.0, "loss/image" if is_image else "loss/text"))
            stages = {"plan": plan(1), "run": failed if is_image and step == 20 else ran(sum=1), "merge": merged}
            store_result(store, assignment, stages[assignment.request.stage])
    assert why(store) == [(20, "failed")]
    assert gaps(store)[0].message == "too large"
    assert why(store, ["loss/image"]) == [(20, "failed")]
    assert why(store, ["loss/text"]) == []


def test_the_newest_evaluation_tells_unless_the_checkpoint_was_replaced(store: Store) -> None:
    measure(store, 10, 1.0)
    enter(store, submission(20), suite())
    fail(store)
    with store.transaction() as session:
        session.add(Evaluation(checkpoint_id=2, suite="quick", suite_digest=suite().digest, state="queued"))
    assert [(gap.why, gap.evaluation) for gap in gaps(store)] == [("pending", 3)]
    enter(store, submission(20, uri="/other.pt", replace=True))
    assert gaps(store) == []


def test_only_in_the_window_along_steps_and_tokens(store: Store) -> None:
    measure(store, 10, 1.0, tokens_seen=100)
    for step, tokens in ((20, 200), (30, 300), (40, None)):
        enter(store, submission(step, tokens_seen=tokens), suite())
    assert [gap.step for gap in gaps(store, window=Window("step", 20, 30))] == [20, 30]
    assert [gap.step for gap in gaps(store, window=Window("tokens", 250))] == [30]
    assert [gap.step for gap in gaps(store, window=Window("tokens"))] == [20, 30]


def fill(store: Store, first: int, last: int, message: str = "cancelled by request") -> None:
    """Enter evaluations that were cancelled, one a step."""
    with store.transaction() as session:
        run, steps = find_run(session, "run-a").id, range(first, last)
        common = {"variant": "raw", "path": "", "size": 1, "mtime_ns": 1, "tags": {}, "spool": "none", "run_id": run}
        rows = [{**common, "step": step, "uri": str(step), "created_at": now()} for step in steps]
        session.execute(sa.insert(Checkpoint), rows)
        ids = session.scalars(sa.select(Checkpoint.id).where(Checkpoint.step >= first).order_by(Checkpoint.step)).all()
        quick = {"suite": "quick", "suite_digest": suite().digest, "state": "cancelled", "created_at": now()}
        quick |= {"planned": True, "priority": 0, "error": {"code": "cancelled", "message": message}}
        session.execute(sa.insert(Evaluation), [{**quick, "checkpoint_id": found} for found in ids])


def test_the_highest_steps_of_many_and_messages_of_a_length(store: Store) -> None:
    """A run may have skipped thousands; an answer of megabytes would be about nothing."""
    measure(store, 1, 1.0)
    fill(store, 2, 2 + MOST, message="x" * 5000)
    exact = history_of(store)
    assert (len(exact.gaps), exact.more_gaps) == (MOST, False)
    assert len(exact.gaps[0].message) == LONGEST
    fill(store, 2 + MOST, 3 + MOST)
    more = history_of(store)
    assert (len(more.gaps), more.more_gaps) == (MOST, True)
    assert [more.gaps[0].step, more.gaps[-1].step] == [3, 2 + MOST]


def test_gaps_behind_many_that_are_closed_are_found(store: Store) -> None:
    """Evaluations that were cancelled and repeated are more than are read together."""
    measure(store, 1, 1.0)
    fill(store, 2, 3 * MOST)
    write(store, {"loss/text": [Point(step, 3.0, None, None) for step in range(5, 3 * MOST)]})
    assert [gap.step for gap in gaps(store)] == [2, 3, 4]


def test_the_mark_changes_with_every_gap(store: Store) -> None:
    """The history's own version does not: an answer with `pending` would be kept for ever."""
    marks = []
    for change in (
        lambda: measure(store, 10, 1.0),
        lambda: enter(store, submission(20), suite()),
        lambda: dispatched(store),
        lambda: cancel(store, 2),
        lambda: retry(store, 2),
        lambda: measure(store, 10, 1.0, run="run-b"),
    ):
        change()
        marks.append(tuple(ask(store, gaps_mark, ask(store, find_run, "run-a"))))
    assert len(set(marks)) == len(marks) - 1
    assert marks[-1] == marks[-2], "another run"
