"""Gaps of a history: steps of a run without values that other steps have, each with its reason.

A gap stands for a checkpoint and a suite without a succeeded evaluation, and is the newest evaluation of the two. The
newest succeeded evaluation of another checkpoint by the suite tells which series the suite has values in. A step only
is a gap if one of these series has no value at the step: another suite or an import may have given the values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, func, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from evalsvc.spec.documents.fields import State
from evalsvc.spec.documents.history import Gap, Why
from evalsvc.store.history.series import Chosen, Window
from evalsvc.store.runs.posting import is_skipped
from evalsvc.store.session import once
from evalsvc.store.tables import Checkpoint, Evaluation, MetricValue, Run, Task

MOST = 500
"""The most gaps in an answer, which has the gaps of the highest steps."""

AT_ONCE = MOST + 1
"""The number of evaluations that one query reads."""

LONGEST = 300
"""The most characters of a message."""

UNSUCCEEDED: tuple[State, ...] = ("queued", "running", "partly_failed", "failed", "cancelled")
"""Every state but `succeeded`, named one by one: by these the database finds the few evaluations with its index."""

Place = tuple[str, str]
"""The digest of a suite, and a variant."""

EvaluationRow = Row[*tuple[object, ...]]
"""An evaluation that did not succeed, with the step and variant of its checkpoint."""


@dataclass(frozen=True)
class Gaps:
    gaps: list[Gap]
    more_gaps: bool
    """Whether gaps of lower steps are left out."""


def read_gaps(session: Session, chosen: Chosen, window: Window) -> Gaps:
    """Return the gaps of the chosen series in a window: the MOST of the highest steps."""
    wanted = _series_by_suite(session, chosen)
    gaps: list[Gap] = []
    last: EvaluationRow | None = None
    while wanted and len(gaps) <= MOST:
        rows = _unsucceeded(session, chosen, window, last)
        gaps += _gaps(session, rows, wanted)
        if len(rows) < AT_ONCE:
            break
        last = rows[-1]
    return Gaps(gaps[:MOST][::-1], len(gaps) > MOST)


def gaps_mark(session: Session, run: Run) -> list[int]:
    return once(session, ("gaps_mark", run.id), lambda: gaps_marks(session, [run.id])[run.id])


def gaps_marks(session: Session, run_ids: Sequence[int]) -> dict[int, list[int]]:
    """Return numbers by the run's id that change whenever the gaps of the run change: a new evaluation has a new id, a
    change of state adds an event, and an evaluation that succeeds or is deleted changes the count."""
    query = (
        select(Checkpoint.run_id, func.count(), func.max(Evaluation.id), func.sum(Evaluation.event_count))
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Checkpoint.run_id.in_(run_ids), Evaluation.state.in_(UNSUCCEEDED))
        .group_by(Checkpoint.run_id)
    )
    marks = {run_id: [0, 0, 0] for run_id in run_ids}
    return marks | {run_id: [int(number) for number in numbers] for run_id, *numbers in session.execute(query)}


def _series_by_suite(session: Session, chosen: Chosen) -> dict[Place, set[int]]:
    series: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for key, head in chosen.heads.items():
        series.setdefault((head.metric, head.protocol), []).append((head.variant, key))
    series_ids: defaultdict[Place, set[int]] = defaultdict(set)
    for suite, *measured in once(session, ("measured", chosen.run.id), lambda: _measured(session, chosen.run)):
        for variant, key in series.get((measured[0], measured[1]), ()):
            series_ids[suite, variant].add(key)
    return series_ids


def _measured(session: Session, run: Run) -> list[tuple[str, str, str]]:
    """Return what the newest evaluations of suites measured: digest of the suite, metric, protocol."""
    newest: dict[str, int] = {}
    for state in ("partly_failed", "succeeded"):  # the last one tells which metrics the suite measures
        query = (
            select(Evaluation.suite_digest, func.max(Evaluation.id).label("id"))
            .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
            .where(Checkpoint.run_id == run.id, Evaluation.state == state)
            .group_by(Evaluation.suite_digest)
        )
        newest |= {row.suite_digest: row.id for row in session.execute(query)}
    digests = {evaluation: suite for suite, evaluation in newest.items()}
    tasks = select(Task.evaluation_id, Task.metrics).where(Task.evaluation_id.in_(digests), Task.metrics.is_not(None))
    return [
        (digests[evaluation], metric["name"], metric["protocol"])
        for evaluation, metrics in session.execute(tasks)
        for metric in metrics or ()
    ]


def _unsucceeded(
    session: Session, chosen: Chosen, window: Window, last: EvaluationRow | None
) -> Sequence[EvaluationRow]:
    """Return AT_ONCE rows after `last`, ordered by step and id, both descending."""
    place = Checkpoint.step if window.x == "step" else Checkpoint.tokens_seen
    query = (
        select(Evaluation.id, Evaluation.checkpoint_id, Evaluation.suite, Evaluation.suite_digest, Evaluation.state)
        .add_columns(Evaluation.error, Checkpoint.step, Checkpoint.variant)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Checkpoint.run_id == chosen.run.id, Checkpoint.replaced_at.is_(None), Evaluation.state != "succeeded")
        .where(Checkpoint.variant.in_({head.variant for head in chosen.heads.values()}), place.is_not(None))
        .where(~is_mended())
        .order_by(Checkpoint.step.desc(), Evaluation.id.desc())
        .limit(AT_ONCE)
    )
    if window.first is not None:
        query = query.where(place >= window.first)
    if window.last is not None:
        query = query.where(place <= window.last)
    if last is not None:
        query = query.where(tuple_(Checkpoint.step, Evaluation.id) < tuple_(last.step, last.id))
    return session.execute(query).all()


def is_mended() -> ColumnElement[bool]:
    """Return whether the checkpoint has a newer evaluation by the same suite, or one that succeeded."""
    other = aliased(Evaluation)
    return (
        select(other.id)
        .where(other.checkpoint_id == Evaluation.checkpoint_id, other.suite_digest == Evaluation.suite_digest)
        .where(or_(other.state == "succeeded", other.id > Evaluation.id))
        .exists()
    )


def _gaps(session: Session, rows: Sequence[EvaluationRow], wanted: Mapping[Place, set[int]]) -> list[Gap]:
    steps: defaultdict[Place, set[int]] = defaultdict(set)
    for row in rows:
        steps[row.suite_digest, row.variant].add(row.step)
    # The database counts: many steps may be complete, and reading their values would take long.
    counts = select(MetricValue.step, func.count().label("number")).group_by(MetricValue.step)
    complete = {
        (*place, row.step)
        for place, series in wanted.items()
        if place in steps
        for row in session.execute(
            counts.where(MetricValue.series_id.in_(sorted(series)), MetricValue.step.in_(sorted(steps[place])))
        )
        if row.number == len(series)
    }
    gaps = []
    for row in rows:
        place = row.suite_digest, row.variant
        if place not in wanted or (*place, row.step) in complete:
            continue
        message = (row.error or {}).get("message", "the service has no record of the reason")
        why: Why = "failed"
        if row.state in ("queued", "running"):
            why = "pending"
            message = "the evaluation waits in the queue" if row.state == "queued" else "the evaluation runs"
        elif row.state == "cancelled":
            why = "skipped" if is_skipped(message) else "cancelled"
        message = message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…"
        of_row = {"step": row.step, "variant": row.variant, "suite": row.suite, "evaluation": row.id}
        gaps.append(Gap(**of_row, why=why, message=message))
    return gaps
