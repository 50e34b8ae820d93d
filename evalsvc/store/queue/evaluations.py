"""Cancel and retry evaluations on request."""

from __future__ import annotations

from sqlalchemy.orm import Session

from evalsvc.errors import WrongState
from evalsvc.store.lookup import find_evaluation, hold, require_current_parents
from evalsvc.store.queue.shards import advance
from evalsvc.store.runs.posting import cancel
from evalsvc.store.tables import OVER, Evaluation


def cancel_evaluation(session: Session, evaluation_id: int) -> Evaluation:
    """Cancel an evaluation; raise WrongState if the evaluation has ended."""
    hold(session, evaluation_id)
    evaluation = find_evaluation(session, evaluation_id)
    if evaluation.state in OVER:
        raise WrongState(
            f"evaluation {evaluation_id} is {evaluation.state}; only queued and running evaluations can be cancelled"
        )
    cancel(evaluation, "cancelled by request")
    return evaluation


def retry_evaluation(session: Session, evaluation_id: int) -> Evaluation:
    """Requeue failed and cancelled shards of an evaluation. Succeeded shards keep their results.

    Raises:
        WrongState: no shard failed or was cancelled; or the checkpoint, or a parent of the checkpoint, was replaced.
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
            if shard.state in ("failed", "cancelled"):
                shard.state, shard.error, shard.failed_attempts, shard.not_before = "queued", None, 0, None
    session.flush()
    # Queue all tasks before `advance`: a task that finishes immediately ends its evaluation if all others are over.
    for task in retried:
        advance(session, task)
    return evaluation
