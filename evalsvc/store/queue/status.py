"""The state of the queue: waiting, running and failed evaluations, and the rate of finished evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, exists, func, select
from sqlalchemy.orm import Session, aliased

from evalsvc.spec import documents
from evalsvc.store.lookup import place_of
from evalsvc.store.runs.base import FIRST_STEP
from evalsvc.store.tables import OVER, AttemptTotal, Checkpoint, Evaluation, Run, Shard, Task, now
from evalsvc.store.views import LiveTask, Pace, document_of, evaluation_view

SHOWN_RUNNING, SHOWN_FAILED, SHOWN_WARNED = 20, 50, 5
"""The most running evaluations, failed evaluations, and tasks with warnings in a list."""

WINDOW = timedelta(hours=1)
"""The period over which the rate of finished evaluations is measured."""

OPEN = ("queued", "running")


@dataclass(frozen=True)
class AtWork:
    """The shard that a worker runs, from the coordinator."""

    task_id: int
    stage: str
    seconds: float
    """Seconds since the shard was dispatched."""


def queue_view(session: Session, pace: Pace) -> documents.Queue:
    """Return the numbers of unfinished evaluations, in total and by run, and an estimate of the remaining time."""
    task_id = case((Task.state == "running", Task.id)).label("running_task")
    names = (Run.name, Evaluation.suite_digest, Task.name)
    tasks = select(*names, task_id, func.count()).join(Checkpoint, Checkpoint.run_id == Run.id)
    tasks = tasks.join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id).join(Task)
    tasks = tasks.where(Evaluation.state.in_(OPEN), Task.state.in_(OPEN)).group_by(*names, "running_task")
    left = Counter[str]()
    for run, digest, task, running_task, number in session.execute(tasks):
        left[run] += pace.of(digest, task) * (number - pace.shares.get(running_task, 0.0))
    rows = session.execute(
        select(Run.name, Evaluation.state, func.count().label("number"))
        .add_columns(func.min(Evaluation.created_at).label("oldest"))
        .join(Checkpoint, Checkpoint.run_id == Run.id)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .where(Evaluation.state.in_(OPEN))
        .group_by(Run.name, Evaluation.state)
        .order_by(Run.name)
    ).all()
    is_open = Evaluation.state.in_(OPEN), Shard.state.in_(OPEN)
    shards = select(Shard.state, func.count()).join(Task).join(Evaluation).where(*is_open).group_by(Shard.state)
    moment = now()
    counts = {(row.name, row.state): row.number for row in rows}
    seconds = {row.name: (moment - row.oldest).total_seconds() for row in rows if row.state == "queued"}
    ages = {name: max(0.0, round(age, 1)) for name, age in seconds.items()}
    queued, running = (sum(row.number for row in rows if row.state == state) for state in OPEN)
    return documents.Queue(
        queued=queued,
        running=running,
        oldest_seconds=max(ages.values(), default=None),
        shards=documents.OpenShards(**dict.fromkeys(OPEN, 0) | dict(session.execute(shards).all())),
        finished_last_hour=finished_lately(session, moment),
        seconds_left=pace.left(sum(left.values())) if left else None,
        runs=[
            documents.RunQueue(
                run=name,
                **{state: counts.get((name, state), 0) for state in OPEN},
                oldest_seconds=ages.get(name),
                seconds_left=pace.left(left[name]),
            )
            for name in dict.fromkeys(row.name for row in rows)
        ],
    )


def finished_lately(session: Session, moment: datetime) -> int:
    """Return the number of evaluations that ended in the hour before `moment` and were not cancelled."""
    ended = Evaluation.state.in_([state for state in OVER if state != "cancelled"])
    query = select(func.count()).select_from(Evaluation).where(ended, Evaluation.finished_at >= moment - WINDOW)
    return session.scalar(query) or 0


def running_view(session: Session, live: Mapping[int, LiveTask], pace: Pace) -> list[documents.RunningEvaluation]:
    """Return the running evaluations, the oldest first, with the progress of their running tasks."""
    query = select(Evaluation).where(Evaluation.state == "running").order_by(Evaluation.started_at, Evaluation.id)
    views = [evaluation_view(session, row, live, pace) for row in session.scalars(query.limit(SHOWN_RUNNING))]
    running = []
    for view in views:
        tasks = [document_of(documents.RunningTask, task) for task in view.tasks if task.state == "running"]
        running.append(document_of(documents.RunningEvaluation, view, suite=view.suite.name, tasks=tasks))
    return running


def failed_view(session: Session) -> list[documents.FailedEvaluation]:
    """Return the newest failed evaluations, the last one first, with their errors."""
    failed = select(Evaluation).where(Evaluation.state.in_(("failed", "partly_failed")))
    newest = failed.order_by(Evaluation.finished_at.desc(), Evaluation.id.desc()).limit(SHOWN_FAILED)
    return [
        document_of(documents.FailedEvaluation, evaluation, **place_of(evaluation.checkpoint))
        for evaluation in session.scalars(newest)
    ]


def warned_view(session: Session) -> list[documents.WarnedTask]:
    """Return the newest tasks with warnings, the last one first. Step 0 is left out once a later step has the same task
    without a warning: its image rows were not trained yet."""
    later_task, later_evaluation, later = aliased(Task), aliased(Evaluation), aliased(Checkpoint)
    explained = (
        exists()
        .where(later_task.name == Task.name, later_task.state == "succeeded", later_task.warnings.is_(None))
        .where(later_evaluation.id == later_task.evaluation_id, later_evaluation.suite == Evaluation.suite)
        .where(later.id == later_evaluation.checkpoint_id, later.run_id == Run.id, later.variant == Checkpoint.variant)
        .where(Checkpoint.step == FIRST_STEP, later.step > FIRST_STEP)
    )
    query = (
        select(Task.name.label("task"), Task.warnings, Evaluation.id, Evaluation.suite)
        .add_columns(Run.name.label("run"), Checkpoint.step, Checkpoint.variant)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Task.warnings.is_not(None), ~explained)
        .order_by(Task.id.desc())
        .limit(SHOWN_WARNED)
    )
    return [document_of(documents.WarnedTask, row) for row in session.execute(query)]


def work_view(session: Session, at_work: Mapping[str, AtWork]) -> dict[str, documents.Work]:
    """Return the shard that each worker runs, by the address of the worker."""
    ids = sorted({work.task_id for work in at_work.values()})
    query = (
        select(Task.id, Task.name.label("task"), Task.evaluation_id.label("evaluation"))
        .add_columns(Run.name.label("run"), Checkpoint.step)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Task.id.in_(ids))
    )
    tasks = {row.id: row for row in session.execute(query)}
    return {
        address: document_of(documents.Work, tasks[work.task_id], stage=work.stage, seconds=work.seconds)
        for address, work in at_work.items()
        if work.task_id in tasks
    }


@dataclass(frozen=True)
class Depths:
    """The numbers of evaluations and shards in the queue."""

    evaluations: dict[str, int]
    shards: dict[str, int]
    """By state: all evaluations, and queued and running shards."""
    oldest_seconds: float
    """The age of the oldest evaluation with a queued shard, in seconds; 0 without such an evaluation."""


def read_depths(session: Session) -> Depths:
    evaluations = select(Evaluation.state, func.count()).group_by(Evaluation.state)
    shards = select(Shard.state, func.count()).where(Shard.state.in_(OPEN)).group_by(Shard.state)
    waits = select(Shard.id).join(Task).where(Task.evaluation_id == Evaluation.id, Shard.state == "queued").exists()
    # Ids grow with time, so the query stops at the first row in the order of ids, which is the oldest.
    oldest = session.scalar(
        select(Evaluation.created_at).where(Evaluation.state.in_(OPEN), waits).order_by(Evaluation.id).limit(1)
    )
    return Depths(
        evaluations=dict(session.execute(evaluations).all()),
        shards=dict.fromkeys(OPEN, 0) | dict(session.execute(shards).all()),
        oldest_seconds=0.0 if oldest is None else max(0.0, (now() - oldest).total_seconds()),
    )


def read_totals(session: Session) -> list[AttemptTotal]:
    return list(session.scalars(select(AttemptTotal)))


def kinds_of(session: Session, task_ids: Iterable[int]) -> dict[int, str]:
    return dict(session.execute(select(Task.id, Task.kind).where(Task.id.in_(sorted(task_ids)))).all())
