"""Cancel, retry and fail whole evaluations."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import WrongState
from evalsvc.messages import ShardError
from evalsvc.store.lookup import find_evaluation, hold, hold_all, require_current_parents
from evalsvc.store.queue.stages import advance, close_evaluation
from evalsvc.store.queue.transitions import Event, apply, fail_task
from evalsvc.store.tables import OVER, Evaluation, now


def cancel_evaluation(session: Session, evaluation_id: int) -> Evaluation:
    """Cancel an evaluation; raise WrongState if the evaluation has ended."""
    hold(session, evaluation_id)
    evaluation = find_evaluation(session, evaluation_id)
    if evaluation.state in OVER:
        raise WrongState(
            f"evaluation {evaluation_id} is {evaluation.state}; only queued and running evaluations can be cancelled"
        )
    cancel(session, evaluation, "cancelled by request")
    return evaluation


def cancel(session: Session, evaluation: Evaluation, reason: str) -> None:
    """Cancel an evaluation and its queued shards. The coordinator stops running shards."""
    evaluation.state, evaluation.finished_at = "cancelled", now()
    evaluation.error = {"code": "cancelled", "message": reason}
    for task in evaluation.tasks:
        if task.state not in OVER:
            task.state = "cancelled"
        for shard in task.shards:
            apply(session, shard, Event.CANCEL)


def retry_evaluation(session: Session, evaluation_id: int) -> Evaluation:
    """Requeue failed and cancelled shards of an evaluation. Succeeded shards keep their results.

    Raise WrongState if no shard failed or was cancelled, or if the checkpoint or a parent of it was replaced.
    """
    hold(session, evaluation_id)
    evaluation = find_evaluation(session, evaluation_id)
    if evaluation.state not in ("failed", "partly_failed", "cancelled"):
        raise WrongState(
            f"evaluation {evaluation_id} is {evaluation.state}; only failed and cancelled evaluations can be retried"
        )
    if evaluation.checkpoint.replaced_at is not None:
        raise WrongState(
            f"the checkpoint of evaluation {evaluation_id} was replaced by another file; evaluate the new checkpoint"
        )
    require_current_parents(evaluation.checkpoint)
    evaluation.state, evaluation.error, evaluation.finished_at = "queued", None, None
    retried = [task for task in evaluation.tasks if task.state != "succeeded"]
    for task in retried:
        task.state, task.error = "queued", None
        for shard in task.shards:
            apply(session, shard, Event.RETRY)
    session.flush()
    # Queue all tasks before `advance`: a task that finishes immediately ends its evaluation if all others are over.
    for task in retried:
        advance(session, task)
    return evaluation


def fail_checkpoint(session: Session, checkpoint_id: int, error: ShardError) -> None:
    """Fail the evaluations of a checkpoint that could not be spooled."""
    hold_all(session, Evaluation.checkpoint_id == checkpoint_id)
    for evaluation in session.scalars(select(Evaluation).where(Evaluation.checkpoint_id == checkpoint_id)):
        for task in evaluation.tasks:
            fail_task(task, error)
        close_evaluation(evaluation)
