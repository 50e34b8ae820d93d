"""Post checkpoints and evaluations: create, replace and cancel their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, delete, false, func, or_, select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.reference import UPLOAD, Identity, Spool
from evalsvc.errors import Conflict, RunBehind, first_few
from evalsvc.spec.documents import Plan
from evalsvc.spec.suite import Suite
from evalsvc.store.history.writing import touch_history
from evalsvc.store.lookup import current_checkpoint, get_or_create_run, hold_all, newest_evaluation, step_of
from evalsvc.store.queue.stages import cancel
from evalsvc.store.queue.status import queue_view
from evalsvc.store.tables import OVER, Checkpoint, Evaluation, MetricValue, Run, Shard, Task, now
from evalsvc.store.views import plan_view, read_pace

_SKIPPED = "skipped, since step"

UNKNOWN_PACE = 30
"""Seconds to wait if no evaluation finished in the last hour."""

SHORTEST, LONGEST = 1, 600
"""Bounds of the seconds in `Retry-After`, since the estimate may rest on evaluations by other suites."""


@dataclass(frozen=True)
class Submission:
    """A posted checkpoint, with the identity of its file, and its model and layout as JSON."""

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
    """The ids of the parents of a virtual checkpoint, whose uri and path are its expression."""


@dataclass(frozen=True)
class Submitted:
    """The checkpoint and the evaluations of a post."""

    checkpoint: Checkpoint
    evaluations: Sequence[Evaluation]
    created: bool
    """Whether the checkpoint is new; False if the same checkpoint was posted before."""
    note: str | None = None
    """Reason why the post evaluates nothing; None if it has evaluations."""


def submit(session: Session, submission: Submission, suites: Sequence[Suite], plan: Plan | None = None) -> Submitted:
    """Store a checkpoint with an evaluation for each suite. A repeated post returns the existing rows. `plan` is the
    run's plan, if its due suites are `suites`; None for suites that the client chose."""
    run = get_or_create_run(session, submission.run)
    existing = current_checkpoint(session, run.id, submission.step, submission.variant)
    difference = None if existing is None else _difference(existing, submission)
    if difference and not submission.replace:
        raise Conflict(
            f"run {run.name!r} has a checkpoint at step {submission.step}, variant {submission.variant!r}, "
            f"with {difference}; post another variant, or send replace=true, which deletes that checkpoint's values"
        )
    unchanged, replaced = (None, existing) if difference else (existing, None)
    is_new = unchanged is None or None in [newest_evaluation(session, unchanged.id, suite.digest) for suite in suites]
    if plan is not None and plan.when_behind == "refuse" and suites and is_new:
        require_room(session, run, plan, submission.step)
    older: ColumnElement[bool] = false()
    if plan is not None and plan.when_behind == "newest":
        of_variant = select(Checkpoint.id).filter_by(run_id=run.id, variant=submission.variant)
        older_steps = Evaluation.checkpoint_id.in_(of_variant.where(Checkpoint.step < submission.step))
        names = [suite.name for suite in suites]
        older = and_(older_steps, Evaluation.suite.in_(names), Evaluation.planned, Evaluation.state == "queued")
    # Lock in the same order as the transaction that stores a result: all evaluations first, then the run's row.
    users = [] if replaced is None else [user.id for user in (replaced, *replaced.children)]
    hold_all(session, or_(Evaluation.checkpoint_id.in_(users), older))
    if replaced is not None:
        replace_checkpoint(session, replaced)
    checkpoint = unchanged or _insert(session, run, submission)
    evaluations = [
        newest_evaluation(session, checkpoint.id, suite.digest)
        or insert_evaluation(session, checkpoint, suite, submission.priority, planned=plan is not None)
        for suite in suites
    ]
    for evaluation in session.scalars(select(Evaluation).where(older)):
        cancel(session, evaluation, f"{_SKIPPED} {submission.step} was posted and the plan says when_behind: newest")
    note = None if suites else _nothing_due(run.name, submission.step, plan)
    return Submitted(checkpoint, evaluations, unchanged is None, note)


def plan_of(session: Session, run: str) -> Plan:
    return plan_view(get_or_create_run(session, run))


def _nothing_due(run: str, step: int, plan: Plan | None) -> str:
    if plan is None:
        return "suites is empty, so nothing is evaluated"
    if plan.suites:
        return f"the plan of run {run!r} has no suite for step {step}, so nothing is evaluated"
    hint = f'give suites=["NAME"], or set a plan: PUT /v1/runs/{run}/plan'
    return f"run {run!r} has no plan, so nothing is evaluated; {hint}"


def due_suites(plan: Plan, step: int) -> list[str]:
    """Return the names of the suites that are due at a step: a multiple of `every` from `first` to `last`."""
    return [
        entry.suite
        for entry in plan.suites
        if step % entry.every == 0 and step >= (entry.first or 0) and (entry.last is None or step <= entry.last)
    ]


def evaluate(session: Session, checkpoint: Checkpoint, suite: Suite, priority: int) -> tuple[Evaluation, bool]:
    """Return the unfinished evaluation of a checkpoint by a suite, or create one; and whether it is new."""
    existing = newest_evaluation(session, checkpoint.id, suite.digest)
    if existing is not None and existing.state not in OVER:
        return existing, False
    return insert_evaluation(session, checkpoint, suite, priority, planned=False), True


def insert_evaluation(
    session: Session, checkpoint: Checkpoint, suite: Suite, priority: int, planned: bool
) -> Evaluation:
    tasks = []
    for index, spec in enumerate(suite.tasks):
        fields = {**vars(spec), "parameters": dict(spec.parameters)}
        tasks.append(Task(index=index, **fields, state="queued", shards=[Shard(stage="plan", index=0)]))
    asked = {"priority": priority, "planned": planned, "state": "queued", "tasks": tasks}
    evaluation = Evaluation(checkpoint_id=checkpoint.id, suite=suite.name, suite_digest=suite.digest, **asked)
    session.add(evaluation)
    session.flush()
    return evaluation


def replace_checkpoint(session: Session, checkpoint: Checkpoint) -> None:
    """Mark a checkpoint as replaced: cancel its unfinished evaluations, and delete its values from the history.
    Unfinished evaluations of virtual checkpoints computed from the checkpoint are cancelled too; their values stay."""
    checkpoint.replaced_at = now()
    for child in checkpoint.children:
        for evaluation in child.evaluations:
            if evaluation.state not in OVER:
                reason = f"{step_of(checkpoint)}, a parent of the checkpoint, was replaced by another file"
                cancel(session, evaluation, f"{reason}; post the expression again with replace=true")
    for evaluation in checkpoint.evaluations:
        if evaluation.state not in OVER:
            cancel(session, evaluation, f"checkpoint {checkpoint.id} was replaced by another file")
    # Lock tasks before the history, as a merge does. The opposite order could deadlock.
    session.flush()
    touch_history(session, checkpoint.run_id)
    ids = [evaluation.id for evaluation in checkpoint.evaluations]
    session.execute(delete(MetricValue).where(MetricValue.evaluation_id.in_(ids)))


def is_skipped(reason: str) -> bool:
    return reason.startswith(_SKIPPED)


def uploaded_bytes(session: Session) -> int:
    query = select(func.sum(Checkpoint.size)).where(
        Checkpoint.spool_state == "ready", Checkpoint.uri.startswith(UPLOAD, autoescape=True)
    )
    return int(session.scalar(query) or 0)


def needs_file(submitted: Submitted) -> bool:
    """Tell whether the spool needs the file of an uploaded checkpoint and does not have it."""
    waits = any(evaluation.state not in OVER for evaluation in submitted.evaluations)
    return submitted.checkpoint.spool_state != "ready" and (submitted.created or waits)


def _insert(session: Session, run: Run, submission: Submission) -> Checkpoint:
    touch_history(session, run.id)  # a history along tokens reads `tokens_seen` of the checkpoint
    same = ("step", "variant", "uri", "path", "sha256", "tokens_seen", "spool")
    checkpoint = Checkpoint(
        run_id=run.id,
        run=run,
        **{name: getattr(submission, name) for name in same},
        **vars(submission.identity),
        model=None if submission.model is None else dict(submission.model),
        layout=None if submission.layout is None else dict(submission.layout),
        tags=dict(submission.tags),
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
        moved = [str(step_of(parent)) for parent in checkpoint.parents if parent.id not in submission.parents]
        return f"another file for {', '.join(moved)} under the same uri"
    for name in ("model", "layout"):
        posted = getattr(submission, name)
        if posted is not None and dict(posted) != getattr(checkpoint, name):
            return f"another {name}"
    return None


def require_room(session: Session, run: Run, plan: Plan, step: int) -> None:
    """Raise RunBehind if `at_most` other steps of the run, or more, have unfinished evaluations."""
    open_steps = (
        select(Checkpoint.step)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.run_id == run.id, Checkpoint.step != step, Evaluation.state.not_in(OVER))
        .group_by(Checkpoint.step)
        .order_by(Checkpoint.step)
    )
    rows = session.execute(open_steps).all()
    if len(rows) < plan.at_most:
        return
    steps_ahead = len(rows) - plan.at_most + 1
    at_work = session.scalar(select(func.count()).select_from(Shard).where(Shard.state == "running")) or 1
    queue = queue_view(session, read_pace(session, {}, at_work))
    left = next((each.seconds_left for each in queue.runs if each.run == run.name), None)
    ahead = UNKNOWN_PACE if left is None else math.ceil(left * steps_ahead / len(rows))
    seconds = min(max(ahead, SHORTEST), LONGEST)
    steps = f"{'step' if len(rows) == 1 else 'steps'} {first_few([row.step for row in rows], 5)}"
    error = RunBehind(
        f"run {run.name!r} is behind: evaluations of {steps} are unfinished, and the run's plan says when_behind: "
        f"refuse, at_most: {plan.at_most}; nothing was stored; post step {step} again in {seconds} s"
    )
    error.retry_after = seconds
    raise error
