"""The stages of a task: plan, run, looks on the way, and merge; and cancelling and retrying of whole evaluations.

A stage is queued once the stage before has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from evalsvc.errors import PlanOutdated, WrongState
from evalsvc.files.codec import Unreadable
from evalsvc.messages import KeptResult, PlanResult, ShardError, units_of
from evalsvc.spec.looks import stop_note
from evalsvc.store.history.writing import write_values
from evalsvc.store.lookup import find_evaluation, hold, hold_all, require_current_parents
from evalsvc.store.queue.transitions import LOOK, MERGE, PLAN, Cause, Event, apply, fail_task, from_row
from evalsvc.store.tables import OVER, Artifact, Attempt, Evaluation, Shard, Task, now


def advance(session: Session, task: Task) -> None:
    """Take the next step of a task by the states of its shards, which may be called at any time: insert the run shards
    after the plan, due looks, and the merge after all run shards, or store the result. A failed look is ignored."""
    if task.state in OVER:
        close_evaluation(task.evaluation)
        return
    if task.looks is False:
        # Without looks, nothing happens before the last run shard has ended, so the other shards are not loaded.
        still_to_run = (Shard.task_id == task.id, Shard.stage == "run", Shard.state.not_in(("succeeded", "skipped")))
        if session.scalar(select(Shard.id).where(*still_to_run).limit(1)) is not None:
            return
    stages: dict[str, list[Shard]] = {"plan": [], "run": [], "look": [], "merge": []}
    for shard in session.scalars(select(Shard).where(Shard.task_id == task.id).order_by(Shard.index)):
        stages[shard.stage].append(shard)
    plan = stages["plan"][0]
    if plan.state != "succeeded":
        return
    try:
        _go_on(session, task, from_row(PLAN, plan.output), stages)
    except Unreadable as error:
        plan_again(session, task, ShardError(PlanOutdated.code, f"the plan or a look cannot be read: {error}"))


def _go_on(session: Session, task: Task, planned: PlanResult, stages: Mapping[str, Sequence[Shard]]) -> None:
    runs, looks, merges = stages["run"], stages["look"], stages["merge"]
    if not runs:
        task.total, task.unit, task.looks = planned.total, planned.unit, bool(planned.looks)
        for index, payload in enumerate(planned.shards):
            session.add(Shard(task_id=task.id, stage="run", index=index, payload=payload))
    elif not merges:
        waits = _look(session, task, planned, runs, looks)
        if not waits and all(shard.state in ("succeeded", "skipped") for shard in runs):
            for look in looks:
                if look.state == "queued":
                    apply(session, look, Event.SKIP)
            session.add(Shard(task_id=task.id, stage="merge", index=0))
    elif merges[0].state == "succeeded":
        for look in looks:
            if look.state in ("queued", "running"):
                apply(session, look, Event.SKIP)
        _store_result(session, task, merges[0], runs, looks)
        close_evaluation(task.evaluation)


PLANS = 10
"""The number of failures of a plan, outdated plans among them, after which the task fails: a plug-in may return shards
that it cannot read."""


def plan_again(session: Session, task: Task, error: ShardError) -> None:
    """Plan a task anew, because this version of the code cannot read the plan or an output. No shard of it is kept."""
    plan = session.scalars(select(Shard).where(Shard.task_id == task.id, Shard.stage == "plan")).one()
    planned = (Shard.task_id == task.id, Shard.stage != "plan")
    session.execute(delete(Attempt).where(Attempt.shard_id.in_(select(Shard.id).where(*planned))))
    session.execute(delete(Shard).where(*planned))
    task.total = task.unit = task.looks = None
    event = Event.LOSE_OUTPUT if plan.failed_attempts + 1 < PLANS else Event.EXHAUST
    apply(session, plan, event, Cause(error=error))


def _look(session: Session, task: Task, plan: PlanResult, runs: Sequence[Shard], looks: Sequence[Shard]) -> bool:
    """Insert due looks, and skip the remaining run shards if a look ends the task; return whether the merge must wait.
    Looks decide in the order of the plan, whichever finishes first, so that the number of samples is reproducible."""
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
            for shard in (*runs[shards:], *looks[looks.index(look) + 1 :]):
                apply(session, shard, Event.SKIP)
            return False
    return False


def _store_result(session: Session, task: Task, merge: Shard, runs: Sequence[Shard], looks: Sequence[Shard]) -> None:
    result: KeptResult = from_row(MERGE, merge.output)
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
    for shard in (merge, *runs, *looks):
        shard.output = None


def close_evaluation(evaluation: Evaluation) -> None:
    """End an evaluation whose tasks are all over."""
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


def cancel_evaluation(session: Session, evaluation_id: int) -> Evaluation:
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
    """Requeue failed and cancelled shards of an evaluation. Succeeded shards keep their results."""
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
    of_checkpoint = Evaluation.checkpoint_id == checkpoint_id
    hold_all(session, of_checkpoint)
    for evaluation in session.scalars(select(Evaluation).where(of_checkpoint)):
        for task in evaluation.tasks:
            fail_task(task, error)
        close_evaluation(evaluation)
