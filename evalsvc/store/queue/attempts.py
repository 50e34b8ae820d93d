"""The queue: dispatch of shards, and the ends of their attempts.

Only the current, running attempt of a shard can change the shard (the fence). What an event does to a shard is in
`transitions`, what follows for the task in `stages`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, joinedload

from evalsvc.checkpoints.copies import spool_path
from evalsvc.checkpoints.expression import File, Sum, parse_expression, replaced
from evalsvc.checkpoints.reference import CheckpointRef, Identity, Virtual
from evalsvc.errors import PlanOutdated, is_transient
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import ShardError, ShardRequest, ShardResult, Stage
from evalsvc.spec.suite import TaskSpec
from evalsvc.store.lookup import checkpoint_label, hold, hold_all, step_of
from evalsvc.store.queue.order import WorkerState, next_shard
from evalsvc.store.queue.stages import advance, plan_again
from evalsvc.store.queue.transitions import Cause, Event, apply
from evalsvc.store.runs.base import find_base, is_first
from evalsvc.store.tables import OVER, Attempt, Checkpoint, Evaluation, Shard, Task

log = logging.getLogger(__name__)


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


def take(session: Session, data_path: Path, worker_state: WorkerState | None = None) -> Assignment | None:
    """Dispatch the next shard of the queue; return None if no shard waits, or its evaluation was just cancelled."""
    shard = next_shard(session, worker_state or WorkerState())
    if shard is None:
        return None
    task, evaluation = shard.task, shard.task.evaluation
    if hold(session, evaluation.id) != evaluation.state:
        return None
    checkpoint, begins = evaluation.checkpoint, evaluation.state == "queued"
    base = find_base(session, checkpoint)
    stage: Stage = shard.stage  # type: ignore[assignment]
    request = ShardRequest(
        TaskSpec(task.kind, task.name, task.parameters),
        stage,
        checkpoint_reference(checkpoint, data_path),
        [] if shard.payload is None else [shard.payload],
        base=None if base is None else checkpoint_reference(base, data_path),
        is_first=stage == "merge" and is_first(session, checkpoint, base),
    )
    if stage in ("look", "merge"):
        runs = [item for item in task.shards if item.stage == "run" and item.state != "skipped"]
        runs = sorted(runs, key=lambda item: item.index)[: (shard.payload or {}).get("shards")]
        outputs = [item.output for item in runs if item.output is not None]
        assert len(outputs) == len(runs), "only succeeded shards are merged"
        request = replace(request, shards=[item.payload or {} for item in runs], outputs=outputs)
    apply(session, shard, Event.DISPATCH)
    return Assignment(
        evaluation.id, task.id, shard.id, shard.attempt, request, checkpoint.id, checkpoint.run_id, begins
    )


def finish(session: Session, assignment: Assignment, result: ShardResult, max_attempts: int = 1) -> bool:
    """Store the result of an attempt, and advance its task; return False, and store nothing, for a late result. Return
    True without storing if an earlier transaction already stored the same result."""
    error = result.error
    if error is not None:
        outcome = "cancelled" if error.code == "cancelled" else "failed"
        return _end(session, assignment, Cause(outcome, error, result), max_attempts)
    shard = _fenced(session, assignment)
    if shard is None:
        attempt = session.get(Attempt, (assignment.shard_id, assignment.attempt))
        return attempt is not None and attempt.outcome == "succeeded"
    apply(session, shard, Event.SUCCEED, Cause("succeeded", result=result))
    session.flush()
    checkpoint, provenance = shard.task.evaluation.checkpoint, result.provenance
    digests = {checkpoint.id: provenance.get("checkpoint_sha256")}
    if parents := provenance.get("parents_sha256"):
        # A digest under the old name of a renamed run is ignored. The next worker sends the digest again.
        digests |= {parent.id: parents.get(str(step_of(parent))) for parent in checkpoint.parents}
        if not checkpoint.is_virtual:
            digests[checkpoint.id] = parents.get(str(adapter_of(checkpoint)))
    for checkpoint_id, sha256 in digests.items():
        if sha256:  # of the first worker that read the files; later workers compare theirs with it
            unknown = (Checkpoint.id == checkpoint_id, Checkpoint.sha256.is_(None))
            session.execute(update(Checkpoint).where(*unknown).values(sha256=sha256))
    session.flush()
    advance(session, shard.task)
    return True


def give_up(
    session: Session, assignment: Assignment, outcome: str, error: ShardError | None, max_attempts: int
) -> bool:
    """Requeue a shard whose attempt ended without a result; return False for an attempt that is not current. `error` is
    the task's once the shard has failed `max_attempts` times; None does not count as a failure."""
    return _end(session, assignment, Cause(outcome, error), max_attempts)


def _end(session: Session, assignment: Assignment, cause: Cause, max_attempts: int) -> bool:
    shard = _fenced(session, assignment)
    if shard is None:
        return False
    error, failures = cause.error, shard.failed_attempts + 1
    if error is not None and error.code == PlanOutdated.code and shard.stage != "plan" and shard.task.state not in OVER:
        log.warning(
            "evaluation %s: task %s is planned again: %s", assignment.evaluation_id, shard.task.name, error.message
        )
        apply(session, shard, Event.RELEASE, cause)
        plan_again(session, shard.task, error)
        session.flush()
        advance(session, shard.task)
        return True
    if error is not None and cause.outcome == "failed" and not is_transient(error.code):
        event = Event.FAIL
    elif shard.task.state == "cancelled":
        event = Event.STOP
    elif error is None or cause.outcome == "cancelled":
        # The evaluation may have been retried before the cancelled attempt stopped.
        event = Event.RELEASE
    elif failures < max_attempts:
        event = Event.BACK_OFF
    else:
        event = Event.EXHAUST
        if cause.outcome == "failed" and failures > 1:
            cause = replace(cause, error=replace(error, message=f"{error.message} (tried {failures} times)"))
    apply(session, shard, event, cause)
    session.flush()
    advance(session, shard.task)
    return True


def run_again(
    session: Session, assignment: Assignment, lost: Sequence[OutputFile], error: ShardError, max_attempts: int
) -> bool:
    """Requeue shards whose outputs the shard of an attempt could not read; return False for a late attempt.

    A merge is deleted, and is inserted again after the shards have run. A look fails, and no shard is requeued: the
    later merge finds the lost outputs itself. The task fails if an output is lost `max_attempts` times.
    """
    reader = _fenced(session, assignment)
    if reader is None:
        return False
    task = reader.task
    if reader.stage == "look":
        apply(session, reader, Event.FAIL, Cause("failed", error))
    else:
        session.execute(delete(Attempt).where(Attempt.shard_id == reader.id))
        session.execute(delete(Shard).where(Shard.id == reader.id))
        # A worker names the files, so only those of this task count.
        named = (Shard.task_id == task.id, Shard.id.in_([file.shard for file in lost]), Shard.state == "succeeded")
        for shard in session.scalars(select(Shard).where(*named, Shard.stage == "run")):
            event = Event.STOP if task.state == "cancelled" else Event.LOSE_OUTPUT
            if shard.failed_attempts + 1 >= max_attempts:
                event = Event.EXHAUST
            apply(session, shard, event, Cause(error=error))
    session.flush()
    advance(session, task)
    return True


def requeue_running(session: Session, held: Mapping[int, int]) -> int:
    """Requeue uncounted the running shards that no worker runs, by the attempts `held`; return their number."""
    hold_all(session, Evaluation.id.in_(select(Task.evaluation_id).join(Shard).where(Shard.state == "running")))
    running = session.scalars(select(Shard).where(Shard.state == "running"))
    lost = [shard for shard in running if held.get(shard.id) != shard.attempt]
    for shard in lost:
        apply(session, shard, Event.STOP if shard.task.state == "cancelled" else Event.RELEASE, Cause("lost"))
    return len(lost)


def is_queued(session: Session) -> bool:
    return session.scalar(select(Evaluation.id).where(Evaluation.state.in_(("queued", "running"))).limit(1)) is not None


def unwanted(session: Session, shard_ids: Iterable[int]) -> set[int]:
    """Return the ids of shards to stop: shards of cancelled evaluations, skipped shards, and deleted shards."""
    ids = set(shard_ids)
    known = select(Shard.id).join(Task).join(Evaluation).where(Shard.id.in_(ids))
    return ids - set(session.scalars(known.where(Evaluation.state != "cancelled", Shard.state != "skipped")))


def _fenced(session: Session, assignment: Assignment) -> Shard | None:
    """Lock and return the shard of an attempt; None unless the attempt is current and running."""
    hold(session, assignment.evaluation_id)
    return session.scalar(
        select(Shard)
        .where(Shard.id == assignment.shard_id, Shard.attempt == assignment.attempt, Shard.state == "running")
        .options(joinedload(Shard.task).joinedload(Task.evaluation).joinedload(Evaluation.checkpoint))
        .with_for_update(of=Shard)
    )


def checkpoint_reference(checkpoint: Checkpoint, data_path: Path) -> CheckpointRef:
    """Return the reference by which a worker opens a checkpoint, or all parents of a virtual checkpoint, of which an
    adapter is one; an adapter and its base take the place of a parent that is their sum."""
    reference = CheckpointRef(
        path=checkpoint.path, sha256=checkpoint.sha256, layout=checkpoint.layout, label=checkpoint_label(checkpoint)
    )
    if not checkpoint.is_virtual:
        identity = Identity(checkpoint.size, checkpoint.mtime_ns, checkpoint.etag)
        reference = replace(reference, identity=identity, model=checkpoint.model)
        if checkpoint.spool_state == "ready":
            copy = str(spool_path(data_path, checkpoint.id, checkpoint.path))
            reference = replace(reference, path=copy, identity=replace(identity, etag=None))
    if not checkpoint.parents:
        return reference
    steps = {str(step_of(parent)): checkpoint_reference(parent, data_path) for parent in checkpoint.parents}
    sums = {name: step.virtual for name, step in steps.items() if step.virtual is not None}
    parents = {name: step for name, step in steps.items() if step.virtual is None}
    parents |= {name: part for virtual in sums.values() for name, part in virtual.parents.items()}
    expression = parse_expression(checkpoint.uri)
    if isinstance(expression, Sum):
        expression = Sum(expression.first, adapter_of(checkpoint))
        parents[str(expression.adapter)] = replace(reference, model=None, layout=None)
        reference = replace(reference, sha256=None, identity=None, model=None)
    else:
        expression = replaced(
            expression, lambda leaf: sums[str(leaf)].expression if str(leaf) in sums else leaf, lambda steps: ()
        )
    return replace(reference, path=checkpoint.uri, virtual=Virtual(expression, parents))


def adapter_of(checkpoint: Checkpoint) -> File:
    """Return the name of a checkpoint's adapter in references, which no other checkpoint's adapter has."""
    return File(str(step_of(checkpoint)))
