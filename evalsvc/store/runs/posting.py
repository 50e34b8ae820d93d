"""What comes in: runs and their plans, checkpoints, evaluations, suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, delete, false, or_, select, update
from sqlalchemy.orm import Session

from evalsvc.checkpoints.reference import Identity, Spool
from evalsvc.errors import Conflict
from evalsvc.spec.documents import Plan
from evalsvc.spec.suite import Suite
from evalsvc.store.history.version import touch_history
from evalsvc.store.hold import hold_all
from evalsvc.store.lookup import current_checkpoint, get_or_create_run, newest_evaluation, step_of
from evalsvc.store.runs.behind import require_room
from evalsvc.store.tables import OVER, Checkpoint, Evaluation, MetricValue, Run, Shard, Task, now
from evalsvc.store.views import plan_view

_SKIPPED = "skipped, since step"


@dataclass(frozen=True)
class Submission:
    """A checkpoint as it is posted, with its file found and its model and layout inline."""

    run: str
    step: int
    uri: str
    path: str
    identity: Identity
    variant: str = "raw"
    sha256: str | None = None
    model: Mapping[str, object] | None = None
    layout: Mapping[str, object] | None = None
    tokens_seen: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    spool: Spool = "none"
    priority: int = 0
    replace: bool = False
    parents: Sequence[int] = ()
    """Ids of what a virtual checkpoint is made of; its uri and path are its expression."""


@dataclass(frozen=True)
class Submitted:
    checkpoint: Checkpoint
    evaluations: Sequence[Evaluation]
    created: bool
    """False: this very checkpoint was there already."""


def submit(
    session: Session, submission: Submission, suites: Sequence[Suite] | None, find: Callable[[str], Suite]
) -> Submitted:
    """Enter a checkpoint and one evaluation per suite: `suites`, or where None those that the run's plan has due.

    The same submission again changes nothing and gives the same rows.

    Raises:
        Conflict: the run has another file at this step and variant, and `replace` is not set.
        RunBehind: the plan of the run refuses the checkpoint until others are evaluated.
    """
    run = get_or_create_run(session, submission.run)
    found = current_checkpoint(session, run.id, submission.step, submission.variant)
    difference = None if found is None else _difference(found, submission)
    if difference and not submission.replace:
        raise Conflict(
            f"run {run.name!r} has a checkpoint at step {submission.step}, variant {submission.variant!r}, "
            f"with {difference}; post another variant, or replace=true to drop that checkpoint's values"
        )
    planned, plan = suites is None, plan_view(run)
    wanted = [find(name) for name in due_suites(plan, submission.step)] if suites is None else list(suites)
    kept, replaced = (None, found) if difference else (found, None)
    if planned and plan.when_behind == "refuse" and _lacks_evaluation(session, kept, wanted):
        require_room(session, run, plan, submission.step)
    skips = planned and plan.when_behind == "newest"
    older = _older(run.id, submission, [suite.name for suite in wanted]) if skips else false()
    # All that is to be stopped at once, and before the run's row: who stores a result takes them in this order.
    hold_all(session, or_(false() if replaced is None else _needs(replaced), older))
    if replaced is not None:
        replace_checkpoint(session, replaced)
    checkpoint = kept or _insert(session, run, submission)
    evaluations = [
        newest_evaluation(session, checkpoint.id, suite.digest)
        or insert_evaluation(session, checkpoint, suite, submission.priority, planned)
        for suite in wanted
    ]
    for evaluation in session.scalars(select(Evaluation).where(older)):
        cancel(evaluation, f"{_SKIPPED} {submission.step} arrived and the plan says when_behind: newest")
    return Submitted(checkpoint, evaluations, created=kept is None)


def _lacks_evaluation(session: Session, checkpoint: Checkpoint | None, suites: Sequence[Suite]) -> bool:
    """Tell whether a post of the checkpoint has something to evaluate; a repeated post has not."""
    return any(
        checkpoint is None or newest_evaluation(session, checkpoint.id, suite.digest) is None for suite in suites
    )


def due_suites(plan: Plan, step: int) -> list[str]:
    """Return the names of the suites that a plan has due at a step: multiples of `every` from `first` to `last`."""
    return [
        entry.suite
        for entry in plan.suites
        if step % entry.every == 0 and step >= (entry.first or 0) and (entry.last is None or step <= entry.last)
    ]


def evaluate(session: Session, checkpoint: Checkpoint, suite: Suite, priority: int) -> tuple[Evaluation, bool]:
    """An evaluation that is not over, or a new one (True): asking again for what is over measures again."""
    existing = newest_evaluation(session, checkpoint.id, suite.digest)
    if existing is not None and existing.state not in OVER:
        return existing, False
    return insert_evaluation(session, checkpoint, suite, priority, planned=False), True


def insert_evaluation(
    session: Session, checkpoint: Checkpoint, suite: Suite, priority: int, planned: bool
) -> Evaluation:
    evaluation = Evaluation(
        checkpoint_id=checkpoint.id,
        suite=suite.name,
        suite_digest=suite.digest,
        priority=priority,
        planned=planned,
        state="queued",
        tasks=[
            Task(
                index=index,
                kind=spec.kind,
                name=spec.name,
                parameters=dict(spec.parameters),
                state="queued",
                shards=[Shard(stage="plan", index=0)],
            )
            for index, spec in enumerate(suite.tasks)
        ],
    )
    session.add(evaluation)
    session.flush()
    return evaluation


def replace_checkpoint(session: Session, checkpoint: Checkpoint) -> None:
    """Retire a checkpoint: its evaluations stop, its values leave the history, its record stays.

    Virtual checkpoints that are made of it keep what was measured; what they still wait for is cancelled.
    """
    checkpoint.replaced_at = now()
    for child in checkpoint.children:
        for evaluation in child.evaluations:
            if evaluation.state not in OVER:
                reason = f"{step_of(checkpoint)}, which it is made of, was replaced by another file"
                cancel(evaluation, f"{reason}; post the expression again with replace=true")
    for evaluation in checkpoint.evaluations:
        if evaluation.state not in OVER:
            cancel(evaluation, f"checkpoint {checkpoint.id} was replaced by another file")
    # In the order in which a merge takes its locks, tasks before the history; crosswise, one of the two would fail.
    session.flush()
    touch_history(session, checkpoint.run_id)
    ids = [evaluation.id for evaluation in checkpoint.evaluations]
    session.execute(delete(MetricValue).where(MetricValue.evaluation_id.in_(ids)))


def cancel(evaluation: Evaluation, reason: str) -> None:
    """Stop an evaluation: what waits is not begun; what runs is told to stop by the coordinator, its result kept."""
    evaluation.state = "cancelled"
    evaluation.finished_at = now()
    evaluation.error = {"code": "cancelled", "message": reason}
    for task in evaluation.tasks:
        if task.state not in OVER:
            task.state = "cancelled"
        for shard in task.shards:
            if shard.state == "queued":
                shard.state = "cancelled"


def is_skipped(reason: str) -> bool:
    """Tell from the reason of a cancelled evaluation whether the plan of the run dropped the evaluation."""
    return reason.startswith(_SKIPPED)


def record_digest(session: Session, checkpoint_id: int, sha256: str) -> None:
    """Keep the digest that the first worker found; every later one must find the same."""
    session.execute(
        update(Checkpoint).where(Checkpoint.id == checkpoint_id, Checkpoint.sha256.is_(None)).values(sha256=sha256)
    )


def _insert(session: Session, run: Run, submission: Submission) -> Checkpoint:
    touch_history(session, run.id)  # a history along tokens has a place for it
    checkpoint = Checkpoint(
        run_id=run.id,
        run=run,
        step=submission.step,
        variant=submission.variant,
        uri=submission.uri,
        path=submission.path,
        size=submission.identity.size,
        mtime_ns=submission.identity.mtime_ns,
        etag=submission.identity.etag,
        sha256=submission.sha256,
        model=None if submission.model is None else dict(submission.model),
        layout=None if submission.layout is None else dict(submission.layout),
        tokens_seen=submission.tokens_seen,
        tags=dict(submission.tags),
        spool=submission.spool,
        spool_state=None if submission.spool == "none" else "copying",
        parents=[session.get_one(Checkpoint, parent) for parent in sorted(submission.parents)],
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def _difference(checkpoint: Checkpoint, submission: Submission) -> str | None:
    if checkpoint.uri != submission.uri:
        return f"the uri {checkpoint.uri}"
    posted = Identity(checkpoint.size, checkpoint.mtime_ns, checkpoint.etag)
    if posted != submission.identity:
        return f"{posted} under the same uri"
    if None not in (checkpoint.sha256, submission.sha256) and checkpoint.sha256 != submission.sha256:
        return f"the sha256 {checkpoint.sha256}"
    if {parent.id for parent in checkpoint.parents} != set(submission.parents):
        return f"another file in the place of {', '.join(_moved(checkpoint, submission))} under the same uri"
    for name in ("model", "layout"):
        posted = getattr(submission, name)
        if posted is not None and dict(posted) != getattr(checkpoint, name):
            return f"another {name}"
    return None


def _moved(checkpoint: Checkpoint, submission: Submission) -> list[str]:
    return [str(step_of(parent)) for parent in checkpoint.parents if parent.id not in submission.parents]


def _needs(checkpoint: Checkpoint) -> ColumnElement[bool]:
    """An evaluation of this one, or of what is made of it."""
    return Evaluation.checkpoint_id.in_([user.id for user in (checkpoint, *checkpoint.children)])


def _older(run_id: int, submission: Submission, suites: Sequence[str]) -> ColumnElement[bool]:
    """An evaluation by the run's plan that need not begin any more, since this one is by the same suite."""
    older = select(Checkpoint.id).where(
        Checkpoint.run_id == run_id, Checkpoint.variant == submission.variant, Checkpoint.step < submission.step
    )
    return and_(
        Evaluation.checkpoint_id.in_(older),
        Evaluation.suite.in_(suites),
        Evaluation.planned,
        Evaluation.state == "queued",
    )
