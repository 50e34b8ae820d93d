"""An upgrade in the middle of a task: what another version planned is planned again, and measured the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from miniature_run import pretrained
from posts_and_results import metric, plan, ran, result, submission, suite
from queue_steps import ask, begin, dispatched, enter, evaluate_whole, next_shard, retry, state, store_result
from small_evaluations import SMALL, evaluating
from sqlalchemy import func, select, update

from evalsvc.config import Settings
from evalsvc.errors import PlanOutdated
from evalsvc.files.atomic import FileLost
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import MergeResult, ShardError, ShardResult
from evalsvc.metrics.definitions import Kind
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.spec import catalog
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.history.reading import read_history
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue.stages import PLANS
from evalsvc.store.session import Store
from evalsvc.store.tables import Shard, Task
from evalsvc.tasks.stages import run_stage
from evalsvc.tasks.task import TaskResult, work_of
from evalsvc.worker.context import ShardContext

OUTDATED = ShardResult(error=ShardError(PlanOutdated.code, "no Sample: number: Field required"))


@pytest.mark.parametrize("stage", ["run", "merge"])
def test_a_task_that_this_version_cannot_read_is_planned_again(store: Store, stage: str) -> None:
    evaluation, [first, second] = begin(store)
    outdated = first
    if stage == "merge":
        store_result(store, first, ran(sum=1))
        store_result(store, second, ran(sum=2))
        outdated = dispatched(store, "merge")
    assert store_result(store, outdated, OUTDATED) is True
    assert state(store, evaluation) == "running"
    if stage == "run":
        assert store_result(store, second, ran(sum=1)) is False, "the shard is of the old plan"
    evaluate_whole(store, metric(1.5))
    assert state(store, evaluation) == "succeeded"
    assert ask(store, read_history, "run-a").series[0].value == [1.5]


def test_a_plan_that_this_version_cannot_read_is_made_again(store: Store) -> None:
    evaluation, runs = begin(store)
    with store.transaction() as session:
        session.execute(update(Shard).where(Shard.stage == "plan").values(output=b"\x81\xa3old\x01"))
    for item in runs:
        store_result(store, item, ran(sum=1))
    assert dispatched(store, "plan").evaluation_id == evaluation


def test_a_plug_in_that_cannot_read_its_own_shards_fails(store: Store) -> None:
    evaluation, [shard] = begin(store, shards=1)
    for _ in range(PLANS - 1):
        store_result(store, shard, OUTDATED)
        store_result(store, dispatched(store, "plan"), plan(1))
        shard = dispatched(store, "run")
    store_result(store, shard, OUTDATED)
    assert state(store, evaluation) == "failed"
    with store.reading() as session:
        assert find_evaluation(session, evaluation).error == OUTDATED.error.to_json()  # type: ignore[union-attr]
        assert set(session.scalars(select(Shard.stage))) == {"plan"}
    retry(store, evaluation)
    evaluate_whole(store, metric(1.5))
    assert state(store, evaluation) == "succeeded"


def no_file(file: OutputFile) -> bytes:
    raise FileLost(f"every output is in its row, and {file} is none")


def make_older(store: Store) -> None:
    """Give the shards and outputs of a task another form than this version's, as a version before could have."""
    with store.transaction() as session:
        for shard in session.scalars(select(Shard).where(Shard.stage == "run")):
            shard.payload = {"number": shard.index}
            shard.output = None if shard.output is None else b"\x81\xa6before\x01"


def upgraded(
    store: Store, step: int, kind: str, context: ShardContext, parameters: dict[str, Any]
) -> Sequence[dict[str, Any]]:
    """Evaluate one task by the queue, with an upgrade after its first run shard, or before it if there is one alone."""
    work = work_of(catalog.load("tasks", kind)(name="some", **parameters))
    [evaluation] = enter(store, submission(step), replace(suite(), tasks=(TaskSpec(kind, "some", parameters),)))
    metrics: list[dict[str, Any]] = []
    is_older, outdated = False, 0
    while assignment := next_shard(store):
        request = assignment.request
        try:
            output = run_stage(work, request, context, no_file)
            if isinstance(output, MergeResult):
                metrics, found = output.metrics, result(metric(1.0))
            else:
                found = ShardResult(output)
        except PlanOutdated as error:
            outdated, found = outdated + 1, ShardResult(error=ShardError(error.code, error.message))
        assert store_result(store, assignment, found)
        if not is_older and request.stage == ("run" if run_shards(store, evaluation) > 1 else "plan"):
            make_older(store)
            is_older = True
    assert (state(store, evaluation), is_older, outdated) == ("succeeded", True, 1)
    return metrics


def run_shards(store: Store, evaluation: int) -> int:
    with store.reading() as session:
        query = select(func.count()).select_from(Shard).join(Task)
        return session.scalar(query.where(Shard.stage == "run", Task.evaluation_id == evaluation)) or 0


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("kind", get_args(Kind))
def test_an_upgrade_in_the_middle_of_a_task(store: Store, tmp_path: Path, kind: Kind) -> None:
    settings = Settings(devices="cpu", threads=1, data_dir=str(tmp_path / "data"))
    tried = []

    def evaluate(kind: str, epoch: int = 2, **parameters: Any) -> TaskResult:
        undisturbed: TaskResult = run(kind, epoch=epoch, **parameters)
        context = ShardContext(pretrained(epoch), settings, lambda done: None, pretrained(0))
        expected = [item.to_json() for item in with_intervals(undisturbed.metrics, kind, undisturbed.items)]
        assert list(upgraded(store, len(tried), kind, context, parameters)) == expected
        tried.append(kind)
        return undisturbed

    with evaluating(tmp_path) as run:
        SMALL[kind](evaluate, tmp_path)
    assert tried
