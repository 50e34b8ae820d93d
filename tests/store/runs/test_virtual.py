"""Virtual checkpoints: what an expression means, what happens when a parent is replaced, and who waits for whom."""

import re
from typing import Any

import pytest
from history_reference import history_of
from posts_and_results import enter, enter_virtual, metric, plan, resolve, set_base, set_spool_state, submission, suite
from queue_steps import cancel, dispatched, evaluate_whole, next_shard, retry, store_result

from evalsvc.checkpoints.expression import MAX_CHECKPOINTS, parse_expression
from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import Conflict, InvalidRequest, UnknownName, WrongState
from evalsvc.messages import ShardResult
from evalsvc.spec.documents import Parent
from evalsvc.store.lookup import find_checkpoint, find_evaluation, find_run
from evalsvc.store.runs import virtual
from evalsvc.store.runs.base import base_ids, runs_awaiting_base
from evalsvc.store.runs.virtual import has_files
from evalsvc.store.session import Store
from evalsvc.store.views import checkpoint_view, in_use


def post(store: Store, *steps: int, run: str = "run-a", **fields: Any) -> None:
    for step in steps:
        enter(store, submission(step, run=run, **fields))


def test_ranges_base_and_virtual_checkpoints_are_resolved_when_they_are_posted(store: Store) -> None:
    post(store, 0, 1000, 1050, 1100, 1200, 9000)
    post(store, 1100, variant="ema")
    post(store, 7, run="text")
    assert resolve(store, "avg(run-a@1000..1200/100)") == ("avg(run-a@1000, run-a@1100, run-a@1200)", [2, 4, 5])
    assert resolve(store, "avg(run-a@1000..1100)") == ("avg(run-a@1000, run-a@1050, run-a@1100)", [2, 3, 4])
    assert resolve(store, "avg(run-a@0..9999:ema)") == ("avg(run-a@1100:ema)", [7])
    assert resolve(store, "graft(run-a@9000, base, layers=0)") == ("graft(run-a@9000, run-a@0, layers=0)", [6, 1])
    set_base(store, "run-a", "text", 7)
    assert resolve(store, "lerp(base, run-a@9000, 0.5)") == ("lerp(text@7, run-a@9000, 0.5)", [8, 6])
    enter_virtual(store, "v", "avg(run-a@0, text@7)", step=1)
    expected = ("lerp(run-a@0, avg(run-a@0, text@7), 0.5)", [1, 8])
    assert resolve(store, "lerp(run-a@0, v@1, 0.5)") == expected


UNKNOWN = {
    "avg(run-a@15)": "no checkpoint at step 15, variant 'raw'; the nearest steps are 10, 20",
    "avg(run-b@1..5)": "no run is named 'run-b'",
    "avg(run-a@11..19/3:ema)": "in run-a@11..19/3:ema; name steps of variant 'ema': 10",
    "avg(run-a@0..20:swa)": "variant 'swa' has no checkpoint",
    "avg(run-a@10..60/10)": "at 40, 50, 60 of run-a@10..60/10, but at 10, 20, 30; leave the stride out",
    "avg(base, run-a@10)": "post step 0 of the run, or name a base: PUT /v1/runs/run-a/base",
}
INVALID = {
    f"avg(run-a@0..{2**53 - 1}/1)": f"has more than {MAX_CHECKPOINTS} checkpoints",
    "avg(base)": "has base and names no run; name a checkpoint of the run in the expression too",
    "avg(/runs/a.pt)": "/runs/a.pt is no checkpoint of the service; write RUN@STEP",
    "run-a@10": "run-a@10 is a checkpoint and no expression",
    "avg(run-a@10": "at character 13: expected a comma or a closing bracket",
}


def test_what_does_not_exist_is_named(store: Store) -> None:
    post(store, 10, 20, 30)
    post(store, 10, variant="ema")
    for error, messages in ((UnknownName, UNKNOWN), (InvalidRequest, INVALID)):
        for text, words in messages.items():
            with pytest.raises(error, match=re.escape(words)):
                resolve(store, text)


def test_a_worker_gets_every_parent_as_it_lies_now(store: Store) -> None:
    """A spooled parent is read from its copy: the trainer may have deleted the original."""
    post(store, 0)
    post(store, 5, spool="link")
    [evaluation] = enter_virtual(store, "v", "lerp(run-a@0, run-a@5, 0.3)", suite())
    set_spool_state(store, 2, "ready")
    assignment = dispatched(store)
    found = assignment.request.checkpoint
    assert (found.path, found.label, found.identity) == ("lerp(run-a@0, run-a@5, 0.3)", "run 'v' step 30", None)
    assert found.virtual.expression == parse_expression("lerp(run-a@0, run-a@5, 0.3)")
    assert {name: parent.path for name, parent in found.virtual.parents.items()} == {
        "run-a@0": "/checkpoints/epoch_0.pt",
        "run-a@5": "/data/spool/2/epoch_5.pt",
    }
    assert assignment.evaluation_id == evaluation


def test_it_waits_while_a_parent_is_copied(store: Store) -> None:
    """What it was told to read would be gone once the copy is there."""
    post(store, 0)
    post(store, 5, spool="copy")
    enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite(), step=0)
    assert next_shard(store) is None
    with store.transaction() as session:
        assert find_run(session, "v").id in runs_awaiting_base(session), "it is the base of its run"
        find_checkpoint(session, 2).spool_state = "failed"
        assert runs_awaiting_base(session) == set()
    assert next_shard(store) is not None


def test_the_digests_that_a_worker_found_are_kept(store: Store) -> None:
    post(store, 0, 5)
    enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite())
    found = {"checkpoint_sha256": "c" * 64, "parents_sha256": {"run-a@0": "a" * 64, "run-a@5": "b" * 64}}
    assert store_result(store, dispatched(store), ShardResult(plan(1).output, provenance=found))
    with store.reading() as session:
        view = checkpoint_view(session, find_checkpoint(session, 3))
        expected = Parent(name="run-a@0", checkpoint=1, sha256="a" * 64, replaced_at=None)
        assert (view.sha256, view.parents[0]) == ("c" * 64, expected)
        assert [find_checkpoint(session, number).sha256 for number in (1, 2)] == ["a" * 64, "b" * 64]
        assert checkpoint_view(session, find_checkpoint(session, 1)).parents == []


def test_the_same_expression_again_is_the_same_checkpoint(store: Store) -> None:
    post(store, 0, 5)
    first = enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite())
    assert enter_virtual(store, "v", " avg( run-a@5,run-a@0 )", suite()) == first
    with pytest.raises(Conflict, match=r"with the uri avg\(run-a@0, run-a@5\)"):
        enter_virtual(store, "v", "avg(run-a@0, run-a@5, run-a@5)", suite())


def test_a_replaced_parent_makes_another_checkpoint(store: Store) -> None:
    """The name in the expression means another file since."""
    post(store, 0, 5)
    [done] = enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite())
    evaluate_whole(store, metric(1.0))
    [waits] = enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite("other", limit=2))
    post(store, 5, identity=Identity(7, 7), replace=True)
    with store.reading() as session:
        state = find_evaluation(session, waits)
        assert (state.state, find_evaluation(session, done).state) == ("cancelled", "succeeded")
        reason = "run-a@5, a parent of the checkpoint, was replaced by another file; post the expr"
        assert reason in state.error["message"]
        assert history_of(store, "v").series[0].value == [1.0], "it was measured, and stays"
        parents = checkpoint_view(session, find_checkpoint(session, 3)).parents
        assert [parent.replaced_at is None for parent in parents] == [True, False]
    with pytest.raises(WrongState, match="is computed from run-a@5, replaced by another file"):
        retry(store, waits)
    with pytest.raises(WrongState, match="checkpoint 3 is computed from run-a@5"):
        resolve(store, "avg(v@30)")
    with pytest.raises(Conflict, match=r"another file for run-a@5 under the same uri; .*replace=true"):
        enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite())
    enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite(), replace=True)
    assert history_of(store, "v").series[0].value == []
    assert resolve(store, "avg(v@30)") == ("avg(avg(run-a@0, run-a@5))", [1, 4])


def test_parents_are_in_use_until_it_is_evaluated(store: Store) -> None:
    post(store, 0, 5)
    [evaluation] = enter_virtual(store, "v", "avg(run-a@0, run-a@5)", suite())

    def used(*checkpoints: int) -> list[bool]:
        with store.reading() as session:
            return [in_use(session, find_checkpoint(session, number)) for number in checkpoints]

    assert used(1, 2, 3) == [True, True, False]
    cancel(store, evaluation)
    assert used(2) == [False]
    retry(store, evaluation)
    assert used(2) == [True]
    evaluate_whole(store, metric(1.0))
    assert used(2) == [False]


def test_as_a_base_it_keeps_its_parents(store: Store) -> None:
    post(store, 3, 5)
    enter_virtual(store, "v", "avg(run-a@3, run-a@5)")
    with store.reading() as session:
        assert base_ids(session) == set()
    set_base(store, "run-b", "v", 30)
    with store.reading() as session:
        assert base_ids(session) == {1, 2, 3}
        assert in_use(session, find_checkpoint(session, 1))
    enter(store, submission(9, run="run-b"), suite())
    assignment = dispatched(store)
    assert list(assignment.request.base.virtual.parents) == ["run-a@3", "run-a@5"]


def test_a_run_of_virtual_checkpoints_has_no_files(store: Store) -> None:
    post(store, 0)
    enter_virtual(store, "v", "avg(run-a@0)", variant="x")
    with store.reading() as session:
        assert [has_files(session, run) for run in ("run-a", "v", "nowhere")] == [True, False, False]
        assert [has_files(session, "run-a", variant) for variant in ("raw", "ema")] == [True, False]


def test_many_checkpoints(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual, "MAX_CHECKPOINTS", 4)
    post(store, *range(5))
    uri, parents = resolve(store, "avg(run-a@0..3)")
    assert len(parents) == 4
    for text in ("avg(run-a@0..4)", f"lerp({uri}, run-a@4, 0.5)"):
        with pytest.raises(InvalidRequest, match="more than 4 checkpoints"):
            resolve(store, text)


def test_one_checkpoint_may_be_made_of_others_only_so_deep(store: Store) -> None:
    post(store, 0, 1)
    text = "run-a@0"
    for _ in range(9):
        text = f"lerp({text}, run-a@1, 0.5)"
    enter_virtual(store, "v", text, step=1)
    deeper = text.replace("run-a@0", "v@1")
    with pytest.raises(InvalidRequest, match="at most 16 levels of nested functions"):
        resolve(store, deeper)


def test_the_order_of_an_average_does_not_decide_whose_base_is_meant(store: Store) -> None:
    post(store, 0, 5)
    post(store, 0, 5, run="run-b")
    found = resolve(store, "avg(run-b@5, run-a@5, base)")
    assert found == resolve(store, "avg(base, run-a@5, run-b@5)") == ("avg(run-a@0, run-a@5, run-b@5)", [1, 2, 4])
