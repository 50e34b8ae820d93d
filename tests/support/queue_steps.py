"""The steps of an evaluation done by hand, for tests of the store without workers."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from posts_and_results import kept_artifact as kept_artifact
from posts_and_results import metric, plan, ran, result, submission, suite
from sqlalchemy.orm import Session

from evalsvc.checkpoints.expression import canonical
from evalsvc.checkpoints.reference import Identity
from evalsvc.messages import ShardError, ShardResult
from evalsvc.spec.protocol import MetricValue
from evalsvc.spec.suite import Suite
from evalsvc.store.lookup import find_evaluation, get_or_create_run
from evalsvc.store.queue.attempts import Assignment, finish, give_up, take
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.runs.base import name_base
from evalsvc.store.runs.posting import Submission, Submitted, due_suites, plan_of, submit
from evalsvc.store.runs.virtual import resolve_expression
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint

Returned = TypeVar("Returned")


def enter(store: Store, posted: Submission, *suites: Suite) -> list[int]:
    with store.transaction() as session:
        submitted = submit(session, posted, suites)
        return [evaluation.id for evaluation in submitted.evaluations]


def submit_planned(session: Session, posted: Submission) -> Submitted:
    """Submit for the suites that are due by the run's plan."""
    plan = plan_of(session, posted.run)
    return submit(session, posted, [suite(name) for name in due_suites(plan, posted.step)], plan)


def resolve(store: Store, text: str) -> tuple[str, list[int]]:
    """The expression in its one spelling, and the ids of its checkpoints."""
    with store.reading() as session:
        found = resolve_expression(session, text)
        return canonical(found.expression), [parent.id for parent in found.parents]


def enter_virtual(store: Store, run: str, text: str, *suites: Suite, step: int = 30, **fields: Any) -> list[int]:
    """Submit an expression as a checkpoint of a run; the ids of its evaluations."""
    uri, parents = resolve(store, text)
    file = {"uri": uri, "path": uri, "identity": Identity(0, 0)}
    return enter(store, submission(step, run=run, parents=parents, **file, **fields), *suites)


def next_shard(store: Store, worker_state: WorkerState | None = None) -> Assignment | None:
    with store.transaction() as session:
        return take(session, Path("/data"), worker_state)


def dispatched(store: Store, stage: str | None = None, worker_state: WorkerState | None = None) -> Assignment:
    """The next shard, which there is, and is of this stage if one is given."""
    assignment = next_shard(store, worker_state)
    assert assignment is not None
    assert stage is None or assignment.request.stage == stage
    return assignment


def store_result(store: Store, assignment: Assignment, outcome: ShardResult) -> bool:
    with store.transaction() as session:
        return finish(session, assignment, outcome)


def evaluate_whole(store: Store, *metrics: MetricValue, shards: int = 1, **found: Any) -> None:
    """Run everything that waits, each merge bringing back `metrics` and `found`, as `result` has it."""
    while assignment := next_shard(store):
        stages = {"plan": plan(shards), "run": ran(sum=1), "merge": result(*metrics, **found)}
        assert store_result(store, assignment, stages[assignment.request.stage])


def measure(store: Store, step: int, value: float, limit: int = 1, **fields: Any) -> None:
    """Post a checkpoint and evaluate it; its text loss is `value`."""
    enter(store, submission(step, **fields), suite(limit=limit))
    evaluate_whole(store, metric(value, limit=limit))


def state(store: Store, evaluation_id: int) -> str:
    with store.reading() as session:
        return find_evaluation(session, evaluation_id).state


def cancel(store: Store, evaluation_id: int) -> None:
    with store.transaction() as session:
        cancel_evaluation(session, evaluation_id)


def retry(store: Store, evaluation_id: int) -> None:
    with store.transaction() as session:
        retry_evaluation(session, evaluation_id)


def lose(store: Store, assignment: Assignment, max_attempts: int = 3) -> None:
    with store.transaction() as session:
        give_up(session, assignment, "worker_died", ShardError("worker_died", "it died"), max_attempts)


def at_once(store: Store, first: Callable[[Session], object], second: Callable[[], Returned]) -> Returned:
    """What a second call returns that begins before the transaction of the first one is committed."""
    with ThreadPoolExecutor(1) as threads:
        with store.transaction() as session:
            first(session)
            session.flush()
            called = threads.submit(second)
            time.sleep(0.5)
        return called.result(30)


def begin(store: Store, shards: int = 2, tasks: int = 1) -> tuple[int, list[Assignment]]:
    """An evaluation whose first task is planned and whose run shards are dispatched."""
    [evaluation] = enter(store, submission(), suite(tasks=tasks))
    store_result(store, dispatched(store), plan(shards))
    return evaluation, [assignment for _ in range(shards) if (assignment := next_shard(store))]


def ask(store: Store, question: Callable[..., Returned], *arguments: Any, **options: Any) -> Returned:
    """What a function answers that reads the store."""
    with store.reading() as session:
        return question(session, *arguments, **options)


def act(store: Store, change: Callable[..., Returned], *arguments: Any, **options: Any) -> Returned:
    """What a function returns that changes the store, in a transaction of its own."""
    with store.transaction() as session:
        return change(session, *arguments, **options)


def set_base(store: Store, run: str, of: str, step: int, variant: str = "raw") -> None:
    with store.transaction() as session:
        name_base(session, get_or_create_run(session, run), of, step, variant)


def set_spool_state(store: Store, checkpoint: int, state: str | None) -> None:
    with store.transaction() as session:
        session.get_one(Checkpoint, checkpoint).spool_state = state
