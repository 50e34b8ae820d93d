"""Documents of checkpoints and evaluations for the REST interface, made from rows, and their lists."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from sqlalchemy import and_, case, extract, func, literal, or_, select
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.spec.documents.document import Document
from evalsvc.store.lookup import place_of, step_of
from evalsvc.store.pages import Filters, Order, PageRequest, read_page
from evalsvc.store.queue.transitions import LOOK, from_row
from evalsvc.store.runs.base import is_named_base
from evalsvc.store.tables import OVER, Artifact, Attempt, Checkpoint, Evaluation, Run, Shard, Task, UtcDateTime, now
from evalsvc.store.tables import Protocol as ProtocolRow

D = TypeVar("D", bound=Document)

MAX_EVALUATIONS = 20
"""The most evaluations of each checkpoint in a list, so that a page stays small."""

PACED_BY = 50
"""The most started evaluations whose shards tell how long tasks take, apart from running ones."""

IN_RUN = (Checkpoint.step, Checkpoint.variant)
"""The order of a run's current checkpoints."""


def document_of(kind: type[D], row: object, **given: object) -> D:
    """Return the document of a row. A field that is not in `given` is the row's attribute of the same name."""
    return kind(**{name: given[name] if name in given else getattr(row, name) for name in kind.model_fields})


@dataclass(frozen=True)
class LiveTask:
    """The work of a task's running shards, from the coordinator. The database only has the finished work."""

    done: int
    """Units done in running shards."""
    per_second: float | None
    """Units per second since the coordinator first saw the task; None before the first unit."""


@dataclass(frozen=True)
class Pace:
    """How long tasks take, in seconds of one worker."""

    seconds: Mapping[tuple[str, str], float]
    """Seconds of a whole task, by the digest of its suite and its name."""
    shares: Mapping[int, float]
    """Done share of each running task, by id."""
    workers: int

    def of(self, suite_digest: str, task: str) -> float:
        """Return the seconds of a task; those of the mean task if no task of its name ran yet."""
        return self.seconds.get((suite_digest, task)) or sum(self.seconds.values()) / max(len(self.seconds), 1)

    def left(self, seconds: float) -> float | None:
        """Return the time that all workers together need for seconds of one worker; None if nothing is known."""
        return seconds / self.workers if self.workers and self.seconds else None


def read_pace(session: Session, live: Mapping[int, LiveTask], workers: int) -> Pace:
    """Return how long tasks take: the seconds of their shards, begun ones too, for the share that is done."""
    moment = literal(now(), UtcDateTime())
    seconds = extract("epoch", func.coalesce(Attempt.finished_at, moment)) - extract("epoch", Attempt.started_at)
    units = case((and_(Attempt.outcome == "succeeded", Shard.stage == "run"), Shard.units), else_=0)
    started = select(Evaluation.id).where(Evaluation.started_at.is_not(None)).order_by(Evaluation.id.desc())
    newest = or_(Evaluation.state == "running", Evaluation.id.in_(started.limit(PACED_BY)))
    columns = (Task.id, Evaluation.suite_digest, Task.name, Task.state, Task.total)
    query = select(*columns, func.sum(seconds), func.sum(units)).join(Evaluation, Evaluation.id == Task.evaluation_id)
    query = query.join(Shard, Shard.task_id == Task.id).join(Attempt, Attempt.shard_id == Shard.id)
    spent, done = defaultdict[tuple[str, str], float](float), defaultdict[tuple[str, str], float](float)
    shares: dict[int, float] = {}
    for task, digest, name, state, total, taken, finished in session.execute(query.where(newest).group_by(*columns)):
        if state == "running" and total:
            shares[task] = min((finished + (live[task].done if task in live else 0)) / total, 1.0)
        if state == "succeeded" or shares.get(task):
            spent[digest, name] += max(float(taken), 0.0)
            done[digest, name] += shares.get(task, 1.0)
    return Pace({key: spent[key] / done[key] for key in done}, shares, workers)


def evaluation_view(
    session: Session, evaluation: Evaluation, live: Mapping[int, LiveTask], pace: Pace | None = None
) -> documents.Evaluation:
    """Return an evaluation with the progress, results and errors of its tasks. `live` has running tasks by id; `pace`
    weighs the tasks of a running evaluation."""
    ids = [task.id for task in evaluation.tasks]
    unfinished = [task.id for task in evaluation.tasks if task.state not in OVER]
    counts, interim, retries = _count_shards(session, ids), _interim(session, unfinished), _retries(session, unfinished)
    progress = {}
    for task in evaluation.tasks:
        done, speed = counts[task.id].pop("units"), None
        if task.state == "succeeded" and task.total is not None:
            done = task.total
        if task.state == "running" and (work := live.get(task.id)):
            done, speed = done + work.done, work.per_second
        progress[task.id] = progress_view(done, task.total, task.unit, speed)
    tasks = [
        document_of(
            documents.Task,
            task,
            progress=progress[task.id],
            warnings=[documents.TaskWarning.model_validate(warning) for warning in task.warnings or []],
            protocols=protocols_view(session, {metric["protocol"] for metric in task.metrics or []}),
            shards=documents.ShardCounts(**counts[task.id]),
            interim=interim.get(task.id),
            retry=retries.get(task.id),
        )
        for task in evaluation.tasks
    ]
    weights = [(pace.of(evaluation.suite_digest, task.name) if pace else 0.0) or 1.0 for task in tasks]
    shares = [task.progress.done / (task.progress.total or math.inf) if task.state not in OVER else 1 for task in tasks]
    left = sum(weight * max(1 - share, 0.0) for weight, share in zip(weights, shares, strict=True))
    return document_of(
        documents.Evaluation,
        evaluation,
        share_done=1 - left / sum(weights) if weights else 1.0,
        seconds_left=pace.left(left) if pace and evaluation.state == "running" else None,
        **place_of(evaluation.checkpoint),
        checkpoint=evaluation.checkpoint_id,
        suite=documents.SuiteVersion(name=evaluation.suite, digest=evaluation.suite_digest),
        tasks=tasks,
    )


def checkpoint_view(session: Session, checkpoint: Checkpoint) -> documents.Checkpoint:
    """Return a posted checkpoint with its parents and evaluations, and whether its file is needed."""
    return document_of(
        documents.Checkpoint,
        checkpoint,
        **place_of(checkpoint),
        in_use=in_use(session, checkpoint),
        parents=[
            document_of(documents.Parent, parent, name=str(step_of(parent)), checkpoint=parent.id)
            for parent in checkpoint.parents
        ],
        evaluations=[document_of(documents.EvaluationSummary, evaluation) for evaluation in checkpoint.evaluations],
    )


def in_use(session: Session, checkpoint: Checkpoint) -> bool:
    """Tell whether the service still needs the posted file: for an unfinished evaluation of the checkpoint or of a
    virtual checkpoint computed from it, for a copy, or as a base that a run names."""
    if checkpoint.spool_state == "ready" or checkpoint.is_virtual:
        return False
    users = (checkpoint, *checkpoint.children)
    waiting = any(evaluation.state not in OVER for user in users for evaluation in user.evaluations)
    return waiting or checkpoint.spool_state == "copying" or is_named_base(session, checkpoint)


def protocols_view(session: Session, ids: Collection[str]) -> dict[str, dict[str, object]]:
    rows = session.scalars(select(ProtocolRow).where(ProtocolRow.id.in_(ids))) if ids else ()
    return {row.id: row.content for row in rows}


def artifact_view(artifact: Artifact) -> documents.Artifact:
    evaluation = artifact.task.evaluation
    place = place_of(evaluation.checkpoint)
    return document_of(documents.Artifact, artifact, **place, evaluation=evaluation.id, task=artifact.task.name)


def plan_view(run: Run) -> documents.Plan:
    return documents.Plan.model_validate(run.plan or {"suites": [], "when_behind": "all"})


def progress_view(done: int, total: int | None, unit: str | None, speed: float | None) -> documents.Progress:
    """Return the progress of a task in units of work. `total` is None until the task is planned."""
    seconds_left = (total - done) / speed if speed and total is not None else None
    return documents.Progress(done=done, total=total, unit=unit, per_second=speed, seconds_left=seconds_left)


def _interim(session: Session, task_ids: Iterable[int]) -> dict[int, documents.Interim]:
    rows = session.execute(
        select(Shard.task_id, Shard.payload, Shard.output)
        .where(Shard.task_id.in_(task_ids), Shard.stage == "look", Shard.state == "succeeded")
        .order_by(Shard.index)
    )
    return {
        task: documents.Interim.model_validate({"done": payload["done"], **asdict(from_row(LOOK, output))})
        for task, payload, output in rows
        if output is not None
    }


def _retries(session: Session, task_ids: Iterable[int]) -> dict[int, documents.Retry]:
    rows = session.execute(
        select(Shard.task_id, Shard.not_before, Shard.error)
        .where(Shard.task_id.in_(task_ids), Shard.state == "queued", Shard.not_before > now())
        .order_by(Shard.not_before)
    ).all()
    waiting = Counter(row.task_id for row in rows)
    # In reverse order, the next retry of a task overwrites later ones.
    retries = {row.task_id: {"at": row.not_before, "error": row.error} for row in reversed(rows)}
    return {task: documents.Retry.model_validate({"shards": waiting[task], **retry}) for task, retry in retries.items()}


def _count_shards(session: Session, task_ids: Iterable[int]) -> dict[int, dict[str, int]]:
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


def checkpoints_view(session: Session, filters: Filters, page: PageRequest) -> documents.Checkpoints:
    """Return a page of the current checkpoints, ordered by run (the oldest first), step and variant."""
    query = select(Checkpoint, Run.name).join(Run).where(Checkpoint.replaced_at.is_(None))
    query = query.where(*filters.of_checkpoints(session))
    if filters.state is not None:
        evaluated = select(Evaluation.id).where(Evaluation.checkpoint_id == Checkpoint.id)
        query = query.where(evaluated.where(Evaluation.state == filters.state).exists())
    order = Order([Checkpoint.run_id, *IN_RUN])
    rows, next_cursor = read_page(session, query, order, ["checkpoints", asdict(filters)], page)
    evaluations = newest_evaluations(session, [row.Checkpoint.id for row in rows])
    listed = []
    for row in rows:
        of_row = {"run": row.name, "evaluations": evaluations.get(row.Checkpoint.id, [])}
        listed.append(document_of(documents.ListedCheckpoint, row.Checkpoint, **of_row))
    return documents.Checkpoints(checkpoints=listed, next_cursor=next_cursor)


def evaluations_view(session: Session, filters: Filters, page: PageRequest) -> documents.Evaluations:
    """Return a page of the evaluations, the newest first, including evaluations of replaced checkpoints."""
    query = select(Evaluation, Run.name.label("run"), Checkpoint.step, Checkpoint.variant)
    query = query.join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id).join(Run, Run.id == Checkpoint.run_id)
    query = query.where(*filters.of_checkpoints(session))
    if filters.suite is not None:
        query = query.where(Evaluation.suite == filters.suite)
    if filters.state is not None:
        query = query.where(Evaluation.state == filters.state)
    order = Order([Evaluation.id], descending=True)
    rows, next_cursor = read_page(session, query, order, ["evaluations", asdict(filters)], page)
    listed = []
    for row in rows:
        suite = documents.SuiteVersion(name=row.Evaluation.suite, digest=row.Evaluation.suite_digest)
        place = {"checkpoint": row.Evaluation.checkpoint_id, "run": row.run, "step": row.step, "variant": row.variant}
        listed.append(document_of(documents.ListedEvaluation, row.Evaluation, suite=suite, **place))
    return documents.Evaluations(evaluations=listed, next_cursor=next_cursor)


def newest_evaluations(
    session: Session, checkpoint_ids: Collection[int]
) -> dict[int, list[documents.EvaluationSummary]]:
    """Return the newest MAX_EVALUATIONS evaluations of each checkpoint in ascending order, by checkpoint id."""
    age = func.row_number().over(partition_by=Evaluation.checkpoint_id, order_by=Evaluation.id.desc())
    columns = (Evaluation.id, Evaluation.checkpoint_id, Evaluation.suite, Evaluation.state)
    ranked = select(*columns, age.label("age")).where(Evaluation.checkpoint_id.in_(checkpoint_ids)).subquery()
    evaluations: dict[int, list[documents.EvaluationSummary]] = {}
    for row in session.execute(select(ranked).where(ranked.c.age <= MAX_EVALUATIONS).order_by(ranked.c.id)):
        evaluations.setdefault(row.checkpoint_id, []).append(document_of(documents.EvaluationSummary, row))
    return evaluations
