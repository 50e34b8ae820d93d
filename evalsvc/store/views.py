"""Rows as the JSON documents that the service answers with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.spec.documents.document import hints_of
from evalsvc.store.lookup import place_of, step_of
from evalsvc.store.queue.stage_results import LOOK, from_row
from evalsvc.store.runs.base import base_view, is_named_base
from evalsvc.store.tables import OVER, Artifact, Checkpoint, Evaluation, MetricValue, Run, Series, Shard, Task, now
from evalsvc.store.tables import Protocol as ProtocolRow

D = TypeVar("D", bound=documents.Document)


def document_of(kind: type[D], row: object, **given: object) -> D:
    """Return the document of a row: every field that is not given is the row's attribute of the same name."""
    own = {name: getattr(row, name) for name in hints_of(kind) if name not in given}
    moments = {name: shown_time(value) for name, value in own.items() if isinstance(value, datetime)}
    return kind(**own | moments | given)


@dataclass(frozen=True)
class LiveTask:
    """What a task is doing right now, from the coordinator; what it has finished stands in the database."""

    done: int
    """Units done in the shards that run."""
    per_second: float | None
    """Units per second since the coordinator first saw the task; None before the first."""


def evaluation_view(session: Session, evaluation: Evaluation, live: Mapping[int, LiveTask]) -> dict[str, Any]:
    """An evaluation with its tasks: progress, results, errors. `live` is keyed by task id."""
    tasks = evaluation.tasks
    counts = _count_shards(session, [task.id for task in tasks])
    unfinished = [task.id for task in tasks if task.state not in OVER]
    interim, retries = _interim(session, unfinished), _retries(session, unfinished)
    return {
        "id": evaluation.id,
        "checkpoint": evaluation.checkpoint_id,
        **place_of(evaluation.checkpoint),
        "suite": {"name": evaluation.suite, "digest": evaluation.suite_digest},
        "state": evaluation.state,
        "priority": evaluation.priority,
        "created_at": shown_time(evaluation.created_at),
        "started_at": shown_time(evaluation.started_at),
        "finished_at": shown_time(evaluation.finished_at),
        "error": evaluation.error,
        "tasks": [
            _task(session, task, counts[task.id], live.get(task.id))
            | {"interim": interim.get(task.id), "retry": retries.get(task.id)}
            for task in tasks
        ],
    }


def checkpoint_view(session: Session, checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as it was posted, whether its file is still needed, what it is made of, and its evaluations."""
    return {
        "id": checkpoint.id,
        **place_of(checkpoint),
        "uri": checkpoint.uri,
        "sha256": checkpoint.sha256,
        "model": checkpoint.model,
        "layout": checkpoint.layout,
        "tokens_seen": checkpoint.tokens_seen,
        "tags": checkpoint.tags,
        "spool": checkpoint.spool,
        "spool_state": checkpoint.spool_state,
        "in_use": in_use(session, checkpoint),
        "created_at": shown_time(checkpoint.created_at),
        "replaced_at": shown_time(checkpoint.replaced_at),
        "parents": [_parent(parent) for parent in checkpoint.parents],
        "evaluations": [evaluation_summary(evaluation) for evaluation in checkpoint.evaluations],
    }


def in_use(session: Session, checkpoint: Checkpoint) -> bool:
    """Whether the posted file is still needed.

    An evaluation that is not over reads it, a copy of it is made, or a run names it as its base. What is made of a
    virtual checkpoint's parents needs their files.
    """
    if checkpoint.spool_state == "ready" or checkpoint.parents:
        return False
    users = (checkpoint, *checkpoint.children)
    waiting = any(evaluation.state not in OVER for user in users for evaluation in user.evaluations)
    return waiting or checkpoint.spool_state == "copying" or is_named_base(session, checkpoint)


def _parent(parent: Checkpoint) -> dict[str, Any]:
    """What a virtual checkpoint is made of, as it was when that was posted."""
    return {
        "name": str(step_of(parent)),
        "checkpoint": parent.id,
        "sha256": parent.sha256,
        "replaced_at": shown_time(parent.replaced_at),
    }


def protocols_view(session: Session, ids: Collection[str]) -> dict[str, dict[str, object]]:
    """Return the contents of protocols by id."""
    rows = session.scalars(select(ProtocolRow).where(ProtocolRow.id.in_(ids))) if ids else ()
    return {row.id: row.content for row in rows}


def evaluation_summary(evaluation: Evaluation) -> dict[str, Any]:
    return {"id": evaluation.id, "suite": evaluation.suite, "state": evaluation.state}


def artifact_view(artifact: Artifact) -> dict[str, Any]:
    """An artifact; its content is at `/v1/artifacts/{id}`."""
    evaluation = artifact.task.evaluation
    return {
        "id": artifact.id,
        "evaluation": evaluation.id,
        **place_of(evaluation.checkpoint),
        "task": artifact.task.name,
        "kind": artifact.kind,
        "name": artifact.name,
        "media_type": artifact.media_type,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "details": artifact.details,
        "pruned_at": shown_time(artifact.pruned_at),
    }


def evaluation_artifacts(session: Session, evaluation_id: int) -> list[dict[str, Any]]:
    """An evaluation's artifacts, in the order in which its tasks gave them."""
    rows = session.scalars(
        select(Artifact).join(Task).where(Task.evaluation_id == evaluation_id).order_by(Task.index, Artifact.id)
    )
    return [artifact_view(artifact) for artifact in rows]


def run_artifacts(session: Session, run: Run, kind: str | None, step: int | None) -> list[dict[str, Any]]:
    """The artifacts of a run's current checkpoints, by step; of an evaluation that was repeated, all."""
    query = (
        select(Artifact)
        .join(Task)
        .join(Evaluation)
        .join(Checkpoint)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .order_by(Checkpoint.step, Checkpoint.variant, Evaluation.id, Task.index, Artifact.id)
    )
    if kind is not None:
        query = query.where(Artifact.kind == kind)
    if step is not None:
        query = query.where(Checkpoint.step == step)
    return [artifact_view(artifact) for artifact in session.scalars(query)]


def run_view(session: Session, run: Run) -> dict[str, Any]:
    """A run with its plan, its base, and its current checkpoints by step, and how far their evaluations are."""
    current = (Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
    checkpoints = session.scalars(
        select(Checkpoint).where(*current).order_by(Checkpoint.step, Checkpoint.variant)
    ).all()
    evaluations: dict[int, list[dict[str, Any]]] = {checkpoint.id: [] for checkpoint in checkpoints}
    for evaluation in session.scalars(select(Evaluation).join(Checkpoint).where(*current).order_by(Evaluation.id)):
        evaluations[evaluation.checkpoint_id].append(evaluation_summary(evaluation))
    return {
        "name": run.name,
        "created_at": shown_time(run.created_at),
        "plan": plan_view(run),
        "base": base_view(session, run),
        "checkpoints": [
            {
                "id": checkpoint.id,
                "step": checkpoint.step,
                "variant": checkpoint.variant,
                "uri": checkpoint.uri,
                "sha256": checkpoint.sha256,
                "tokens_seen": checkpoint.tokens_seen,
                "created_at": shown_time(checkpoint.created_at),
                "evaluations": evaluations[checkpoint.id],
            }
            for checkpoint in checkpoints
        ],
    }


def plan_view(run: Run) -> dict[str, Any]:
    """A run's plan; a run without one evaluates what is asked for and nothing else."""
    return run.plan or {"suites": [], "when_behind": "all"}


def runs_view(session: Session) -> documents.Runs:
    """Return every run, by name, with how much there is of it."""
    posted = (
        select(Checkpoint.run_id, func.count().label("checkpoints"), func.max(Checkpoint.step).label("last_step"))
        .where(Checkpoint.replaced_at.is_(None))
        .group_by(Checkpoint.run_id)
        .subquery()
    )
    measured = (
        select(Series.run_id, func.count().label("number"))
        .join(MetricValue, MetricValue.series_id == Series.id)
        .group_by(Series.run_id)
        .subquery()
    )
    rows = session.execute(
        select(
            Run.name,
            Run.created_at,
            posted.c.last_step,
            func.coalesce(posted.c.checkpoints, 0).label("checkpoints"),
            func.coalesce(measured.c.number, 0).label("values"),
        )
        .outerjoin(posted, posted.c.run_id == Run.id)
        .outerjoin(measured, measured.c.run_id == Run.id)
        .order_by(Run.name)
    )
    return documents.Runs(runs=[document_of(documents.RunSummary, row) for row in rows])


def _task(session: Session, task: Task, shards: dict[str, int], live: LiveTask | None) -> dict[str, Any]:
    units = shards.pop("units")
    return {
        "name": task.name,
        "kind": task.kind,
        "state": task.state,
        "progress": _progress(task, units, live),
        "error": task.error,
        "warnings": task.warnings or [],
        "metrics": task.metrics,
        "protocols": protocols_view(session, {metric["protocol"] for metric in task.metrics or []}),
        "provenance": task.provenance,
        "shards": shards,
    }


def _progress(task: Task, finished: int, live: LiveTask | None) -> dict[str, Any]:
    running = live if task.state == "running" else None
    done = finished + (running.done if running else 0)
    if task.state == "succeeded" and task.total is not None:
        done = task.total
    return progress_view(done, task.total, task.unit, running.per_second if running else None)


def progress_view(done: int, total: int | None, unit: str | None, speed: float | None) -> dict[str, Any]:
    """How far a task is, in units and never in shards: `total` is None until it is planned."""
    left = (total - done) / speed if speed and total is not None else None
    return {"done": done, "total": total, "unit": unit, "per_second": speed, "seconds_left": left}


def _interim(session: Session, task_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Of each task that goes on: what its newest look found, and on how many units. It never enters the history."""
    rows = session.execute(
        select(Shard.task_id, Shard.payload, Shard.output)
        .where(Shard.task_id.in_(task_ids), Shard.stage == "look", Shard.state == "succeeded")
        .order_by(Shard.index)
    )
    return {
        task: {"done": payload["done"], **asdict(from_row(LOOK, output))}
        for task, payload, output in rows
        if output is not None
    }


def _retries(session: Session, task_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Of each task with shards that failed by what may pass, and wait: how many, and the one that is tried first."""
    rows = session.execute(
        select(Shard.task_id, Shard.not_before, Shard.error)
        .where(Shard.task_id.in_(task_ids), Shard.state == "queued", Shard.not_before > now())
        .order_by(Shard.not_before)
    )
    found: dict[int, dict[str, Any]] = {}
    for task, not_before, error in rows:
        first = found.setdefault(task, {"shards": 0, "at": shown_time(not_before), "error": error})
        first["shards"] += 1
    return found


def _count_shards(session: Session, task_ids: Iterable[int]) -> dict[int, dict[str, int]]:
    """Of each task: its run shards by state, all attempts at them, and the units that they finished.

    Planning and merging are shards too, but not pieces of the work: they do not count here.
    """
    names = ("total", "succeeded", "running", "queued", "failed", "cancelled", "skipped", "attempts", "units")
    counts = {task_id: dict.fromkeys(names, 0) for task_id in task_ids}
    rows = session.execute(
        select(Shard.task_id, Shard.state, func.count(), func.sum(Shard.attempt), func.sum(Shard.units))
        .where(Shard.task_id.in_(counts), Shard.stage == "run")
        .group_by(Shard.task_id, Shard.state)
    )
    for task_id, state, number, attempts, units in rows:
        count = counts[task_id]
        count[state] = number
        count["total"] += number
        count["attempts"] += attempts
        count["units"] += units or 0
    return counts


def shown_time(value: datetime | None) -> str | None:
    """A moment as documents have it."""
    return None if value is None else value.isoformat(timespec="milliseconds")
