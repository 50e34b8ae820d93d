"""What waits, what runs, what failed last and how fast it goes: a look at the whole queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from evalsvc.store.lookup import place_of
from evalsvc.store.tables import OVER, Checkpoint, Evaluation, Run, Shard, Task, now
from evalsvc.store.views import LiveTask, evaluation_view, shown_time

SHOWN_RUNNING, SHOWN_FAILED, SHOWN_WARNED = 20, 5, 5
"""How many evaluations or tasks are named."""

WINDOW = timedelta(hours=1)
"""Over which the throughput is taken."""

OPEN = ("queued", "running")


def queue_view(session: Session) -> dict[str, Any]:
    """What is not over, in sum and by run, and when it will be at the pace of the last hour's work."""
    rows = session.execute(
        select(
            Run.name, Evaluation.state, func.count().label("number"), func.min(Evaluation.created_at).label("oldest")
        )
        .join(Checkpoint, Checkpoint.run_id == Run.id)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .where(Evaluation.state.in_(OPEN))
        .group_by(Run.name, Evaluation.state)
        .order_by(Run.name)
    ).all()
    moment = now()
    runs: dict[str, dict[str, Any]] = {}
    for row in rows:
        run = runs.setdefault(row.name, {"run": row.name, "queued": 0, "running": 0, "oldest_seconds": None})
        run[row.state] = row.number
        if row.state == "queued":
            run["oldest_seconds"] = _seconds(row.oldest, moment)
    finished = finished_lately(session, moment)
    left = sum(run["queued"] + run["running"] for run in runs.values())
    ages = [run["oldest_seconds"] for run in runs.values() if run["oldest_seconds"] is not None]
    return {
        "queued": sum(run["queued"] for run in runs.values()),
        "running": sum(run["running"] for run in runs.values()),
        "oldest_seconds": max(ages, default=None),
        "shards": _shards(session),
        "finished_last_hour": finished,
        "seconds_left": left * _busy_seconds(session, moment) / finished if left and finished else None,
        "runs": list(runs.values()),
    }


def finished_lately(session: Session, moment: datetime) -> int:
    """How many evaluations came to an end by themselves within the last hour."""
    ended = (Evaluation.state.in_([state for state in OVER if state != "cancelled"]),)
    query = select(func.count()).select_from(Evaluation).where(*ended, Evaluation.finished_at >= moment - WINDOW)
    return session.scalar(query) or 0


def _busy_seconds(session: Session, moment: datetime) -> float:
    """Return how many seconds of the last hour some evaluation was running: an idle hour says nothing of the pace."""
    since = moment - WINDOW
    begun = (Evaluation.started_at.is_not(None), Evaluation.started_at < moment)
    unfinished = and_(Evaluation.finished_at.is_(None), Evaluation.state == "running")
    rows = session.execute(
        select(Evaluation.started_at, Evaluation.finished_at)
        .where(*begun, or_(unfinished, Evaluation.finished_at >= since))
        .order_by(Evaluation.started_at)
    )
    busy, counted_until = timedelta(), since
    for started, finished in rows:
        until = min(finished or moment, moment)
        if until > counted_until:
            busy += until - max(started or since, counted_until)
            counted_until = until
    return busy.total_seconds()


def running_view(session: Session, live: Mapping[int, LiveTask]) -> list[dict[str, Any]]:
    """The evaluations that run, the oldest first, with the progress of the tasks in them that do."""
    query = select(Evaluation).where(Evaluation.state == "running").order_by(Evaluation.started_at, Evaluation.id)
    found = []
    for evaluation in session.scalars(query.limit(SHOWN_RUNNING)):
        view = evaluation_view(session, evaluation, live)
        names = ("id", "run", "step", "variant", "started_at")
        tasks = [
            {"name": task["name"], "progress": task["progress"]} for task in view["tasks"] if task["state"] == "running"
        ]
        found.append({name: view[name] for name in names} | {"suite": view["suite"]["name"], "tasks": tasks})
    return found


def failed_view(session: Session) -> list[dict[str, Any]]:
    """The evaluations that failed last, the newest first, and why."""
    query = (
        select(Evaluation)
        .where(Evaluation.state.in_(("failed", "partly_failed")))
        .order_by(Evaluation.finished_at.desc(), Evaluation.id.desc())
        .limit(SHOWN_FAILED)
    )
    return [
        {
            "id": evaluation.id,
            **place_of(evaluation.checkpoint),
            "suite": evaluation.suite,
            "state": evaluation.state,
            "finished_at": shown_time(evaluation.finished_at),
            "error": evaluation.error,
        }
        for evaluation in session.scalars(query)
    ]


def warned_view(session: Session) -> list[dict[str, Any]]:
    """The tasks that ended last with a suspicion about their result, the newest first."""
    query = (
        select(Task.name, Task.warnings, Evaluation.id, Evaluation.suite, Checkpoint.step, Checkpoint.variant)
        .add_columns(Run.name.label("run"))
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Task.warnings.is_not(None))
        .order_by(Task.id.desc())
        .limit(SHOWN_WARNED)
    )
    names = ("id", "run", "step", "variant", "suite", "warnings")
    return [{**{name: getattr(row, name) for name in names}, "task": row.name} for row in session.execute(query)]


def places_of(session: Session, task_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Of tasks: whose they are, to be shown."""
    rows = session.execute(
        select(Task.id, Task.name, Task.evaluation_id, Run.name.label("run"), Checkpoint.step)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Task.id.in_(sorted(set(task_ids))))
    )
    return {
        row.id: {"evaluation": row.evaluation_id, "run": row.run, "step": row.step, "task": row.name} for row in rows
    }


def _shards(session: Session) -> dict[str, int]:
    """Of the evaluations that are not over."""
    rows = session.execute(
        select(Shard.state, func.count().label("number"))
        .join(Task)
        .join(Evaluation)
        .where(Evaluation.state.in_(OPEN), Shard.state.in_(OPEN))
        .group_by(Shard.state)
    )
    return dict.fromkeys(OPEN, 0) | {row.state: row.number for row in rows}


def _seconds(since: Any, moment: datetime) -> float:
    """How old something is; nothing is younger than now, whatever a clock says."""
    age: float = (moment - since).total_seconds()
    return max(0.0, round(age, 1))
