"""The steps of an evaluation done by hand, for tests of the store without workers."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from posts_and_results import Returned, act, ask, enter, metric, plan, ran, result, submission, suite
from posts_and_results import enter_virtual as enter_virtual
from posts_and_results import kept_artifact as kept_artifact
from posts_and_results import set_base as set_base
from sqlalchemy.orm import Session

from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.protocol import MetricValue
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.queue.attempts import Assignment, finish, give_up, take
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.session import Store


def next_shard(store: Store, worker_state: WorkerState | None = None) -> Assignment | None:
    return act(store, take, Path("/data"), worker_state)


def dispatched(store: Store, stage: str | None = None, worker_state: WorkerState | None = None) -> Assignment:
    """The next shard, which there is, and is of this stage if one is given."""
    assignment = next_shard(store, worker_state)
    assert assignment is not None
    assert stage is None or assignment.request.stage == stage
    return assignment


def store_result(store: Store, assignment: Assignment, outcome: ShardResult) -> bool:
    return act(store, finish, assignment, outcome)


def evaluate_whole(store: Store, *metrics: MetricValue, shards: int = 1, **found: Any) -> list[Assignment]:
    """Run everything that waits, each merge bringing back `metrics` and `found`, as `result` has it."""
    assignments = []
    while assignment := next_shard(store):
        stages = {"plan": plan(shards), "run": ran(sum=1), "merge": result(*metrics, **found)}
        assert store_result(store, assignment, stages[assignment.request.stage])
        assignments.append(assignment)
    return assignments


def measure(store: Store, step: int, value: float, limit: int = 1, **fields: Any) -> None:
    """Post a checkpoint and evaluate it; its text loss is `value`."""
    enter(store, submission(step, **fields), suite(limit=limit))
    evaluate_whole(store, metric(value, limit=limit))


def state(store: Store, evaluation_id: int) -> str:
    return ask(store, find_evaluation, evaluation_id).state


def cancel(store: Store, evaluation_id: int) -> None:
    act(store, cancel_evaluation, evaluation_id)


def retry(store: Store, evaluation_id: int) -> None:
    act(store, retry_evaluation, evaluation_id)


def lose(store: Store, assignment: Assignment, max_attempts: int = 3) -> None:
    act(store, give_up, assignment, "worker_died", ShardError("worker_died", "it died"), max_attempts)


def at_once(
    store: Store, first: Callable[[Session, int], object], evaluation: int, second: Callable[[], Returned]
) -> Returned:
    """What a second call returns that begins before the transaction of the first one is committed."""
    with ThreadPoolExecutor(1) as threads:
        with store.transaction() as session:
            first(session, evaluation)
            session.flush()
            called = threads.submit(second)
            time.sleep(0.5)
        return called.result(30)


def begin(store: Store, shards: int = 2, tasks: int = 1) -> tuple[int, list[Assignment]]:
    """An evaluation whose first task is planned and whose run shards are dispatched."""
    [evaluation] = enter(store, submission(), suite(tasks=tasks))
    store_result(store, dispatched(store), plan(shards))
    return evaluation, [assignment for _ in range(shards) if (assignment := next_shard(store))]
