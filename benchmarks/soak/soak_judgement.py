"""What must be true once all is over, whatever happened before."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from soak_faults import FAULTS
from soak_trainer import Ledger
from soak_world import World
from sqlalchemy import func, select
from sqlalchemy.orm import Session, undefer

from evalsvc.checkpoints.copies import spool_path
from evalsvc.config import Settings
from evalsvc.files.artifacts import artifact_path
from evalsvc.store.lookup import find_evaluation
from evalsvc.store.session import Store
from evalsvc.store.tables import (
    Artifact,
    Attempt,
    Checkpoint,
    Evaluation,
    MetricValue,
    Series,
    Shard,
    Task,
)


@dataclass(frozen=True)
class Hit:
    """A fault that happened."""

    at: datetime
    seconds: float
    """Since the beginning."""
    kind: str
    what: str


@dataclass(frozen=True)
class Found:
    """What an evaluation found: to be the same to the last bit whatever happened."""

    tasks: Mapping[str, tuple[Any, Any, Mapping[str, str]]]
    """Metrics, packed items and artifacts' digests of each task."""
    history: Mapping[tuple[str, str], tuple[Any, ...]]
    """Value, kind, standard error and n by metric and protocol, as the history has them."""


@dataclass
class Judgement:
    """What was found wrong, a line each, and figures to look at."""

    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def require(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.wrong.append(otherwise)


def found_by(session: Session, evaluation_id: int) -> Found:
    evaluation = find_evaluation(session, evaluation_id)
    tasks = session.scalars(select(Task).where(Task.evaluation_id == evaluation_id).options(undefer(Task.items)))
    by_task = {}
    for task in tasks:
        artifacts = session.execute(select(Artifact.name, Artifact.sha256).where(Artifact.task_id == task.id))
        kept = task.items if task.items_sha256 is None else task.items_sha256
        by_task[task.name] = (task.metrics, kept, {row.name: row.sha256 for row in artifacts})
    rows = session.execute(
        select(Series, MetricValue)
        .join(MetricValue, MetricValue.series_id == Series.id)
        .where(MetricValue.evaluation_id == evaluation.id)
    )
    values = {
        (series.metric, series.protocol_id): (value.value, value.kind, value.stderr, value.n) for series, value in rows
    }
    return Found(by_task, values)


def judge(world: World, ledger: Ledger, hits: Sequence[Hit], expected: Mapping[Path, Found]) -> Judgement:
    """Look at everything that a stopped world has left."""
    judgement = Judgement()
    with world.store.reading() as session:
        _judge_posts(judgement, session, ledger)
        _judge_values(judgement, session, ledger, expected)
        _judge_attempts(judgement, session, world, hits)
        _judge_files(judgement, session, world.data_dir)
        judgement.figures["recovery"] = _recoveries(session, hits)
    for part in (world.service, *world.supervisors, world.scheduler):
        # A start without its database or scheduler fails, and is tried again.
        if part is not None and part.ended_by_itself:
            judgement.figures.setdefault("ended by themselves", {})[part.name] = part.ended_by_itself
    judgement.figures["faults"] = dict(sorted(Counter(hit.kind for hit in hits).items()))
    judgement.figures["answers"] = dict(sorted(ledger.statuses.items()))
    judgement.wrong += ledger.failures
    left = world.leftovers()
    judgement.require(not left, f"processes are left over: {[(item.pid, item.cmdline()) for item in left]}")
    return judgement


def _judge_posts(judgement: Judgement, session: Session, ledger: Ledger) -> None:
    """Nothing that was acknowledged is lost, and nothing is there twice."""
    for post in ledger.posts:
        name = f"{post.body['run']} step {post.body['step']}"
        row = session.get(Checkpoint, post.checkpoint)
        if row is None or session.get(Evaluation, post.evaluation) is None:
            judgement.wrong.append(f"{name} was acknowledged as checkpoint {post.checkpoint} and is lost")
            continue
        stored = (row.run.name, row.step, row.uri)
        judgement.require(
            stored == (post.body["run"], post.body["step"], post.body["uri"]), f"{name} was stored as {stored}"
        )
        judgement.require(len(post.answers) == 1, f"{name} was answered with different ids: {sorted(post.answers)}")
        judgement.require((row.replaced_at is not None) == post.replaced, f"{name}: replaced is {row.replaced_at}")
    for table in (Checkpoint, Evaluation):
        rows = session.scalar(select(func.count()).select_from(table))
        judgement.require(
            rows == len(ledger.posts), f"{rows} rows in {table.__tablename__} of {len(ledger.posts)} that were posted"
        )


def _judge_values(judgement: Judgement, session: Session, ledger: Ledger, expected: Mapping[Path, Found]) -> None:
    """Every evaluation is complete, and every number is what it is when nothing happens."""
    values = states = 0
    for post in ledger.posts:
        evaluation = find_evaluation(session, post.evaluation)
        name = f"evaluation {evaluation.id} ({post.body['run']} step {post.body['step']})"
        found = found_by(session, evaluation.id)
        if post.replaced:
            judgement.require(not found.history, f"{name} is of a replaced checkpoint and in the history")
            judgement.require(evaluation.state in ("cancelled", "succeeded"), f"{name} is {evaluation.state}")
            continue
        judgement.require(evaluation.state == "succeeded", f"{name} is {evaluation.state}: {evaluation.error}")
        states += evaluation.state == "succeeded"
        same = found == expected[post.file]
        judgement.require(
            same or evaluation.state != "succeeded",
            f"{name} has other values: {_differing(found, expected[post.file])}",
        )
        values += len(found.history) * same
    in_history = session.scalar(select(func.count()).select_from(MetricValue))
    judgement.require(in_history == values, f"{in_history} values in the history, {values} of them right")
    judgement.figures |= {"evaluations": len(ledger.posts), "succeeded": states, "values equal": values}


def _differing(found: Found, expected: Found) -> list[Any]:
    """What is not the same, for the message."""
    keys = {
        key
        for key in found.history.keys() | expected.history.keys()
        if found.history.get(key) != expected.history.get(key)
    }
    shown: list[Any] = [(key[0], found.history.get(key), expected.history.get(key)) for key in sorted(keys)]
    for name in expected.tasks:
        parts = zip(("metrics", "items", "artifacts"), found.tasks[name], expected.tasks[name], strict=True)
        shown += [f"{part} of {name}" for part, now, then in parts if now != then]
    return shown[:5]


def _judge_attempts(judgement: Judgement, session: Session, world: World, hits: Sequence[Hit]) -> None:
    """What has succeeded never runs again, and nothing runs again that no fault has hit."""
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in session.scalars(select(Attempt).order_by(Attempt.shard_id, Attempt.number)):
        attempts[attempt.shard_id].append(attempt)
    replaced = select(Shard.id).join(Task).join(Evaluation).join(Checkpoint).where(Checkpoint.replaced_at.is_not(None))
    open_ones = [
        key for key, items in attempts.items() for item in items if item.outcome is None or item.finished_at is None
    ]
    # Of a replaced checkpoint, too: its attempts were told to stop long ago.
    judgement.require(not open_ones, f"attempts of shards {open_ones} never ended")
    dropped = set(session.scalars(replaced))
    for shard, items in attempts.items():
        outcomes = [item.outcome for item in items]
        judgement.require(
            "succeeded" not in outcomes[:-1], f"shard {shard} ran again after it had succeeded: {outcomes}"
        )
        judgement.require(shard in dropped or outcomes[-1] == "succeeded", f"shard {shard} never succeeded: {outcomes}")
        judgement.require(
            [item.number for item in items] == list(range(1, len(items) + 1)), f"shard {shard} lacks attempts"
        )
    total = sum(map(len, attempts.values()))
    bound = sum(FAULTS[hit.kind].repeats(world) for hit in hits)
    judgement.require(
        total <= len(attempts) + bound, f"{total - len(attempts)} attempts too many, faults explain {bound}"
    )
    failed_attempts = session.scalar(select(func.sum(Shard.failed_attempts))) or 0
    charged = sum(FAULTS[hit.kind].failed_attempts for hit in hits)
    judgement.require(
        failed_attempts <= charged, f"{failed_attempts} shards were charged, {charged} faults may charge one"
    )
    judgement.figures |= {
        "shards": len(attempts),
        "attempts": dict(sorted(Counter(str(item.outcome) for items in attempts.values() for item in items).items())),
        "attempts that came to nothing": _in_vain(session),
        "shards run more than once": sum(len(items) > 1 for items in attempts.values()),
        "attempts beyond the first": total - len(attempts),
        "of at most": bound,
        "failed attempts": failed_attempts,
    }


def _in_vain(session: Session) -> dict[str, int]:
    """How many, by stage and outcome: whether faults have hit all stages."""
    rows = session.execute(
        select(Shard.stage, Attempt.outcome, func.count())
        .join(Shard, Shard.id == Attempt.shard_id)
        .where(Attempt.outcome != "succeeded")
        .group_by(Shard.stage, Attempt.outcome)
    )
    return {f"{stage} {outcome}": n for stage, outcome, n in sorted(map(tuple, rows))}


def _judge_files(judgement: Judgement, session: Session, data_dir: Path) -> None:
    """Everything that a row names is there, and nothing else."""
    settings = Settings(data_dir=str(data_dir))
    digests = set(session.scalars(select(Artifact.sha256)))
    items = set(session.scalars(select(Task.items_sha256).where(Task.items_sha256.is_not(None))))
    named = {
        settings.outputs_path: set(),
        settings.artifacts_path: {artifact_path(settings.artifacts_path, digest) for digest in digests},
        settings.items_path: {artifact_path(settings.items_path, digest) for digest in items},
        data_dir / "spool": spooled_files(session, data_dir),
    }
    for folder, files in named.items():
        there = {path for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
        judgement.require(there >= files, f"rows name files that are not there: {_short(files - there, data_dir)}")
        judgement.require(there <= files, f"files that nothing names: {_short(there - files, data_dir)}")


def spooled_files(session: Session, data_dir: Path) -> set[Path]:
    """The copies that checkpoints have."""
    ready = session.scalars(select(Checkpoint).where(Checkpoint.spool_state == "ready"))
    return {spool_path(data_dir, checkpoint.id, checkpoint.path) for checkpoint in ready}


def unnamed_copies(store: Store, data_dir: Path) -> set[Path]:
    """Copies that no checkpoint has; the service removes them within minutes."""
    with store.reading() as session:
        named = spooled_files(session, data_dir)
    return {path for path in (data_dir / "spool").rglob("*") if path.is_file()} - named


def _short(paths: Iterable[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(paths)][:5]


def _recoveries(session: Session, hits: Sequence[Hit]) -> dict[str, tuple[int, float, float]]:
    """By kind: how many, and median and longest seconds from a fault to the next attempt that began."""
    started = sorted(session.scalars(select(Attempt.started_at)))
    delays: dict[str, list[float]] = defaultdict(list)
    for hit in hits:
        later = [moment for moment in started if moment > hit.at]
        if later:
            delays[hit.kind].append((later[0] - hit.at).total_seconds())
    return {kind: (len(values), median(values), max(values)) for kind, values in sorted(delays.items())}


def progress(store: Store) -> tuple[int, int]:
    """What grows as long as a service gets on: attempts, and values of the history."""
    with store.reading() as session:
        attempts = session.scalar(select(func.count()).select_from(Attempt).where(Attempt.finished_at.is_not(None)))
        return attempts or 0, session.scalar(select(func.count()).select_from(MetricValue)) or 0


def any_running(store: Store) -> bool:
    with store.reading() as session:
        return session.scalar(select(Shard.id).where(Shard.state == "running").limit(1)) is not None


def all_over(store: Store) -> bool:
    with store.reading() as session:
        waiting = select(func.count()).select_from(Evaluation).where(Evaluation.state.in_(("queued", "running")))
        running = select(func.count()).select_from(Shard).where(Shard.state == "running")
        return session.scalar(waiting) == 0 and session.scalar(running) == 0
