"""The queue: dispatch of shards, and storage of their results.

`advance` derives the next step of a task from the states of its shards, and may be called at any time: after a result,
a restart or a retry. Only the current, running attempt of a shard can store a result (the fence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, joinedload

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import is_transient
from evalsvc.files.outputs import KeptOutput, OutputFile
from evalsvc.messages import (
    PlanResult,
    ShardError,
    ShardRequest,
    ShardResult,
    Stage,
    units_of,
)
from evalsvc.spec.looks import stop_note
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.history.writing import write_values
from evalsvc.store.lookup import hold, hold_all, step_of
from evalsvc.store.queue.back_off import wait_until
from evalsvc.store.queue.order import WorkerState, next_shard
from evalsvc.store.queue.references import checkpoint_reference
from evalsvc.store.queue.stage_results import LOOK, MERGE, PLAN, from_row, to_row
from evalsvc.store.queue.totals import count_attempt
from evalsvc.store.runs.base import find_base, is_first
from evalsvc.store.runs.posting import record_digest
from evalsvc.store.tables import (
    OVER,
    Artifact,
    Attempt,
    Checkpoint,
    Evaluation,
    Shard,
    Task,
    now,
)


@dataclass(frozen=True)
class Assignment:
    """A dispatched shard, with the number of the attempt that may store the result."""

    evaluation_id: int
    task_id: int
    shard_id: int
    attempt: int
    request: ShardRequest
    checkpoint_id: int
    run_id: int
    begins: bool
    """Whether the shard is the first of its evaluation."""

    @property
    def key(self) -> str:
        return f"evaluation-{self.evaluation_id}/shard-{self.shard_id}/attempt-{self.attempt}"


def take(
    session: Session, spooled: Callable[[Checkpoint], Path], worker_state: WorkerState | None = None
) -> Assignment | None:
    """Dispatch the next shard of the queue; return None if no shard waits, or its evaluation was just cancelled."""
    shard = next_shard(session, worker_state or WorkerState())
    if shard is None:
        return None
    task, evaluation = shard.task, shard.task.evaluation
    if hold(session, evaluation.id) != evaluation.state:
        return None
    checkpoint, base = evaluation.checkpoint, find_base(session, evaluation.checkpoint)
    request = replace(
        _request(task, shard, checkpoint_reference(checkpoint, spooled)),
        base=None if base is None else checkpoint_reference(base, spooled),
        is_first=shard.stage == "merge" and is_first(session, checkpoint, base),
    )
    shard.attempt += 1
    shard.state = task.state = "running"
    session.add(Attempt(shard_id=shard.id, number=shard.attempt))
    begins = evaluation.state == "queued"
    if begins:
        evaluation.state = "running"
        evaluation.started_at = evaluation.started_at or now()
    return Assignment(
        evaluation.id, task.id, shard.id, shard.attempt, request, checkpoint.id, checkpoint.run_id, begins
    )


def finish(session: Session, assignment: Assignment, result: ShardResult, max_attempts: int = 1) -> bool:
    """Store the result of an attempt, and advance its task; return False, and store nothing, for a late result.

    Return True without storing if an earlier transaction already stored the same result. A shard that failed with a
    transient error backs off and is retried, up to `max_attempts` attempts.
    """
    shard = _fenced(session, assignment)
    if shard is None:
        return result.error is None and _is_stored(session, assignment)
    task, error = shard.task, result.error
    outcome = "succeeded" if error is None else "cancelled" if error.code == "cancelled" else "failed"
    _close_attempt(session, shard, outcome, "" if error is None else error.code)
    shard.provenance = dict(result.provenance)
    if error is not None:
        if outcome == "cancelled":
            # The evaluation may have been retried before the cancelled attempt stopped.
            shard.state = _waiting(task)
            shard.error = None if shard.state == "queued" else error.to_json()
        elif is_transient(error.code):
            _count_failure(shard, error, max_attempts, tried_before=shard.failed_attempts)
            shard.not_before = wait_until(shard.failed_attempts)
        else:
            _fail(shard, error)
    else:
        shard.state, shard.not_before = "succeeded", None
        shard.output = to_row(result.output)
        shard.error = None
        if shard.stage == "run":
            shard.units = units_of(shard.payload or {})
        session.flush()
        _record_digests(session, task.evaluation.checkpoint, result.provenance)
    session.flush()
    advance(session, task)
    return True


def give_up(
    session: Session, assignment: Assignment, outcome: str, error: ShardError | None, max_attempts: int
) -> bool:
    """Requeue a shard whose attempt ended without a result; return False for an attempt that is not current.

    Args:
        outcome: `lost` (the service or the scheduler stopped), `cancelled`, `worker_died` or `deadline_exceeded`.
        error: the error of the task once the shard has failed `max_attempts` times; None does not count as a failure.
    """
    shard = _fenced(session, assignment)
    if shard is None:
        return False
    _close_attempt(session, shard, outcome, "" if error is None else error.code)
    shard.state = _waiting(shard.task)
    if error is not None:
        _count_failure(shard, error, max_attempts)
        # The first retry has no back-off, since the shard is rarely the cause of a worker's death.
        shard.not_before = wait_until(shard.failed_attempts - 1) if shard.failed_attempts > 1 else None
    session.flush()
    advance(session, shard.task)
    return True


def _count_failure(shard: Shard, error: ShardError, max_attempts: int, tried_before: int = 0) -> None:
    """Count a failed attempt. Requeue the shard, or fail the shard after `max_attempts` failures."""
    shard.failed_attempts += 1
    shard.state, shard.error = _waiting(shard.task), error.to_json()
    if shard.failed_attempts >= max_attempts and shard.state == "queued":
        suffix = f" (tried {shard.failed_attempts} times)" if tried_before else ""
        _fail(shard, replace(error, message=error.message + suffix))


def _fail(shard: Shard, error: ShardError) -> None:
    """Mark a shard as failed, and its task unless the shard is a look."""
    shard.state, shard.error = "failed", error.to_json()
    if shard.stage != "look":
        fail_task(shard.task, error)


def run_again(
    session: Session, assignment: Assignment, lost: Sequence[OutputFile], error: ShardError, max_attempts: int
) -> bool:
    """Requeue shards whose outputs are lost; return False for an attempt that is not current.

    The attempt is of a shard that reads the outputs. A merge is deleted, and is inserted again after the shards have
    run. A look fails, and no shard is requeued: the later merge finds the lost outputs itself. The task fails with
    `error` if an output is lost `max_attempts` times.
    """
    reader = _fenced(session, assignment)
    if reader is None:
        return False
    task = reader.task
    if reader.stage == "look":
        _close_attempt(session, reader, "failed", error.code)
        reader.state, reader.error = "failed", error.to_json()
        session.flush()
        advance(session, task)
        return True
    session.execute(delete(Attempt).where(Attempt.shard_id == reader.id))
    session.execute(delete(Shard).where(Shard.id == reader.id))
    for shard in session.scalars(select(Shard).where(Shard.id.in_([file.shard for file in lost]))):
        shard.state = _waiting(task)
        shard.output, shard.units = None, None
        shard.failed_attempts += 1
        if shard.failed_attempts >= max_attempts:
            shard.state, shard.error = "failed", error.to_json()
            fail_task(task, error)
    session.flush()
    advance(session, task)
    return True


def requeue_running(session: Session, held: Mapping[int, int]) -> int:
    """Requeue running shards that no worker runs, without counting a failure; return their number.

    `held` has the attempts on workers by shard id.
    """
    hold_all(session, Evaluation.id.in_(select(Task.evaluation_id).join(Shard).where(Shard.state == "running")))
    running = session.scalars(select(Shard).where(Shard.state == "running"))
    lost = [shard for shard in running if held.get(shard.id) != shard.attempt]
    for shard in lost:
        _close_attempt(session, shard, "lost")
        shard.state = _waiting(shard.task)
    return len(lost)


def advance(session: Session, task: Task) -> None:
    """Take the next step of a task by the states of its shards.

    The steps are: insert run shards after the plan has succeeded, insert due looks, insert the merge after all run
    shards have ended, store the result after the merge has succeeded. A failed look is ignored.
    """
    if task.state in OVER:
        _close_evaluation(task.evaluation)
        return
    if _only_waits(session, task):
        return
    stages: dict[str, list[Shard]] = {"plan": [], "run": [], "look": [], "merge": []}
    for shard in session.scalars(select(Shard).where(Shard.task_id == task.id).order_by(Shard.index)):
        stages[shard.stage].append(shard)
    plan, runs, merges = stages["plan"][0], stages["run"], stages["merge"]
    if plan.state != "succeeded":
        return
    planned = from_row(PLAN, plan.output)
    if not runs:
        _insert_runs(session, task, planned)
    elif not merges:
        waits = _look(session, task, planned, runs, stages["look"])
        if not waits and all(shard.state in ("succeeded", "skipped") for shard in runs):
            _skip(session, [look for look in stages["look"] if look.state == "queued"])
            session.add(Shard(task_id=task.id, stage="merge", index=0))
    elif merges[0].state == "succeeded":
        _store_result(session, task, merges[0], runs, stages["look"])


def _only_waits(session: Session, task: Task) -> bool:
    """Tell whether a task without looks has unfinished run shards, without loading all shards."""
    if task.looks is not False:
        return False
    still_to_run = (Shard.task_id == task.id, Shard.stage == "run", Shard.state.not_in(("succeeded", "skipped")))
    return session.scalar(select(Shard.id).where(*still_to_run).limit(1)) is not None


def is_queued(session: Session) -> bool:
    """Tell whether an evaluation is queued or running, so that there are or will be shards to dispatch."""
    return session.scalar(select(Evaluation.id).where(Evaluation.state.in_(("queued", "running"))).limit(1)) is not None


def fail_task(task: Task, error: ShardError) -> None:
    """Mark a task as failed with its first error. Its queued shards are not dispatched before a retry."""
    if task.state not in OVER:
        task.state, task.error = "failed", error.to_json()


def fail_checkpoint(session: Session, checkpoint_id: int, error: ShardError) -> None:
    """Fail the evaluations of a checkpoint that could not be spooled."""
    hold_all(session, Evaluation.checkpoint_id == checkpoint_id)
    for evaluation in session.scalars(select(Evaluation).where(Evaluation.checkpoint_id == checkpoint_id)):
        for task in evaluation.tasks:
            fail_task(task, error)
        _close_evaluation(evaluation)


def unwanted(session: Session, shard_ids: Iterable[int]) -> set[int]:
    """Return the ids of shards to stop: shards of cancelled evaluations, skipped shards, and deleted shards."""
    ids = set(shard_ids)
    wanted = (
        select(Shard.id)
        .join(Task)
        .join(Evaluation)
        .where(Shard.id.in_(ids), Evaluation.state != "cancelled", Shard.state != "skipped")
    )
    return ids - set(session.scalars(wanted))


def _record_digests(session: Session, checkpoint: Checkpoint, provenance: Mapping[str, Any]) -> None:
    if (sha256 := provenance.get("checkpoint_sha256")) and checkpoint.sha256 is None:
        record_digest(session, checkpoint.id, sha256)
    digests = provenance.get("parents_sha256", {})
    for parent in checkpoint.parents if digests else ():
        # A digest under the old name of a renamed run is ignored. The next worker sends the digest again.
        if sha256 := digests.get(str(step_of(parent))):
            record_digest(session, parent.id, sha256)


def _request(task: Task, shard: Shard, reference: CheckpointRef) -> ShardRequest:
    stage: Stage = shard.stage  # type: ignore[assignment]
    spec = TaskSpec(task.kind, task.name, task.parameters)
    if stage in ("look", "merge"):
        runs = [item for item in task.shards if item.stage == "run" and item.state != "skipped"]
        runs = sorted(runs, key=lambda item: item.index)[: (shard.payload or {}).get("shards")]
        return ShardRequest(
            spec, stage, reference, [item.payload or {} for item in runs], [_output(item) for item in runs]
        )
    return ShardRequest(spec, stage, reference, [shard.payload] if shard.payload is not None else [])


def _output(shard: Shard) -> KeptOutput:
    assert shard.output is not None, "only succeeded shards are merged"
    return shard.output


def _fenced(session: Session, assignment: Assignment) -> Shard | None:
    """Lock the shard of an attempt until the transaction ends, and return the shard; None unless the attempt is current
    and running."""
    hold(session, assignment.evaluation_id)
    return session.scalar(
        select(Shard)
        .where(Shard.id == assignment.shard_id, Shard.attempt == assignment.attempt, Shard.state == "running")
        .options(joinedload(Shard.task).joinedload(Task.evaluation).joinedload(Evaluation.checkpoint))
        .with_for_update(of=Shard)
    )


def _is_stored(session: Session, assignment: Assignment) -> bool:
    attempt = session.get(Attempt, (assignment.shard_id, assignment.attempt))
    return attempt is not None and attempt.outcome == "succeeded"


def _waiting(task: Task) -> str:
    """Return the state of a requeued shard: `queued`, or `cancelled` in a cancelled task."""
    return "cancelled" if task.state == "cancelled" else "queued"


def _close_attempt(session: Session, shard: Shard, outcome: str, code: str = "") -> None:
    """Record the end and the outcome of a shard's current attempt. `code` is the code of its error."""
    attempt = session.get(Attempt, (shard.id, shard.attempt))
    if attempt is not None:
        attempt.finished_at, attempt.outcome = now(), outcome
        units = units_of(shard.payload) if shard.payload and shard.stage == "run" and outcome == "succeeded" else 0
        seconds = (attempt.finished_at - attempt.started_at).total_seconds()
        labels = {"kind": shard.task.kind, "stage": shard.stage, "outcome": outcome, "code": code}
        count_attempt(session, **labels, seconds=seconds, units=units)


def _insert_runs(session: Session, task: Task, plan: PlanResult) -> None:
    task.total, task.unit, task.looks = plan.total, plan.unit, bool(plan.looks)
    for index, payload in enumerate(plan.shards):
        session.add(Shard(task_id=task.id, stage="run", index=index, payload=payload))


def _look(session: Session, task: Task, plan: PlanResult, runs: Sequence[Shard], looks: Sequence[Shard]) -> bool:
    """Insert the looks that are due, and skip the remaining run shards if a look ends the task. Return whether the
    merge must wait.

    Looks decide in the order of the plan, whichever finishes first, so that the number of samples is reproducible.
    """
    until = plan.until
    if any(shard.state == "skipped" for shard in runs):
        return False
    if until is None and all(shard.state == "succeeded" for shard in runs):
        return False
    known = {look.index: look for look in looks}
    for index, (shards, units) in enumerate(plan.looks):
        if shards >= len(runs) or any(shard.state != "succeeded" for shard in runs[:shards]):
            break
        look = known.get(index)
        if look is None:
            session.add(Shard(task_id=task.id, stage="look", index=index, payload={"shards": shards, "done": units}))
        if until is not None and (look is None or look.state in ("queued", "running")):
            return True
        if until is None or look is None or look.state != "succeeded":
            continue
        if reason := until.reached(from_row(LOOK, look.output).metrics):
            note = stop_note(reason, units, plan.looks[-1][1], plan.unit)
            look.payload = {**(look.payload or {}), "stopped": note}
            _skip(session, [*runs[shards:], *looks[looks.index(look) + 1 :]])
            return False
    return False


def _skip(session: Session, shards: Iterable[Shard]) -> None:
    """Skip shards that are no longer needed. The coordinator stops running attempts, whose results are discarded."""
    for shard in shards:
        if shard.state == "running":
            _close_attempt(session, shard, "cancelled")
        shard.state, shard.output, shard.units = "skipped", None, None
    session.flush()


def _store_result(
    session: Session, task: Task, merge: Shard, runs: Sequence[Shard], looks: Sequence[Shard] = ()
) -> None:
    result = from_row(MERGE, merge.output)
    _skip(session, [look for look in looks if look.state in ("queued", "running")])
    used = [shard for shard in runs if shard.state == "succeeded"]
    stopped = [(look.payload or {})["stopped"] for look in looks if "stopped" in (look.payload or {})]
    task.metrics, task.state = list(result.metrics), "succeeded"
    task.warnings = list(result.warnings) or None
    task.items, task.items_sha256 = (result.items, None) if isinstance(result.items, bytes) else (None, result.items)
    session.execute(delete(Artifact).where(Artifact.task_id == task.id))
    session.add_all(Artifact(task_id=task.id, **asdict(artifact)) for artifact in result.artifacts)
    task.provenance = {
        **(merge.provenance or {}),
        "shards": [shard.provenance for shard in used],
        "notes": {**result.notes, **({"stopped": stopped[0]} if stopped else {})},
    }
    task.total = sum(units_of(shard.payload or {}) for shard in used)
    evaluation = task.evaluation
    if evaluation.checkpoint.replaced_at is None:
        write_values(session, evaluation, result.metrics, result.protocols)
    # The task has the result, so the outputs of shards are no longer needed.
    merge.output = None
    for shard in [*runs, *looks]:
        shard.output = None
    _close_evaluation(evaluation)


def _close_evaluation(evaluation: Evaluation) -> None:
    states = {task.state for task in evaluation.tasks}
    if evaluation.state in OVER or not states <= set(OVER):
        return
    evaluation.finished_at = now()
    if states == {"succeeded"}:
        evaluation.state = "succeeded"
        return
    failed = [task for task in evaluation.tasks if task.state == "failed"]
    evaluation.state = "partly_failed" if "succeeded" in states else "failed"
    evaluation.error = failed[0].error if failed else None
