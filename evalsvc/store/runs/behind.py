"""Refuse checkpoints of a run that is behind: `when_behind: refuse` of the run's plan."""

from __future__ import annotations

import math

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.errors import RunBehind, first_few
from evalsvc.spec.documents import Plan
from evalsvc.store.queue.status import seconds_per_evaluation
from evalsvc.store.tables import OVER, Checkpoint, Evaluation, Run

NAMED = 5
"""The most steps that a message names."""

UNKNOWN_PACE = 30
"""Seconds to wait if no evaluation finished in the last hour."""

SHORTEST, LONGEST = 1, 600
"""Bounds of the seconds in `Retry-After`, since the estimate may rest on evaluations by other suites."""


def require_room(session: Session, run: Run, plan: Plan, step: int) -> None:
    """Raise RunBehind if `at_most` other steps of the run, or more, have unfinished evaluations.

    Several checkpoints at a step, such as averaged weights, count as one step.
    """
    open_steps = (
        select(Checkpoint.step, func.count().label("evaluations"))
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.run_id == run.id, Checkpoint.step != step, Evaluation.state.not_in(OVER))
        .group_by(Checkpoint.step)
        .order_by(Checkpoint.step)
    )
    rows = session.execute(open_steps).all()
    if len(rows) < plan.at_most:
        return
    steps_ahead = len(rows) - plan.at_most + 1
    evaluations = math.ceil(steps_ahead * sum(row.evaluations for row in rows) / len(rows))
    pace = seconds_per_evaluation(session)
    seconds = UNKNOWN_PACE if pace is None else min(max(math.ceil(evaluations * pace), SHORTEST), LONGEST)
    steps = f"{'step' if len(rows) == 1 else 'steps'} {first_few([row.step for row in rows], NAMED)}"
    error = RunBehind(
        f"run {run.name!r} is behind: evaluations of {steps} are unfinished, and the run's plan says when_behind: "
        f"refuse, at_most: {plan.at_most}; nothing was stored; post step {step} again in {seconds} s"
    )
    error.retry_after = seconds
    raise error
