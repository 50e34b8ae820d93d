"""Why values are missing from a history: steps of a run that lack values which other steps have.

A gap is an evaluation that did not succeed, of a checkpoint that is not replaced. The newest succeeded evaluation by
the same suite tells which series the evaluation would have values in; at least one of these series has no value at the
step. A step whose values are all there, as after another evaluation, has no gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, func, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.spec.documents.history import Gap, Why
from evalsvc.store.history.axis import Window
from evalsvc.store.history.series import Chosen
from evalsvc.store.runs.posting import is_skipped
from evalsvc.store.tables import Checkpoint, Evaluation, MetricValue, Run, Task

MOST = 500
"""Gaps of an answer: those of the highest steps."""

AT_ONCE = MOST + 1
"""Evaluations that are read together."""

LONGEST = 300
"""Characters of a message."""

Found = Row[*tuple[object, ...]]
"""An evaluation that did not succeed, with the step and variant of its checkpoint."""


@dataclass(frozen=True)
class Gaps:
    """Gaps by step, and whether gaps of lower steps are left out."""

    gaps: list[Gap]
    more_gaps: bool


def read_gaps(session: Session, chosen: Chosen, window: Window) -> Gaps:
    """Return the gaps of some series of a run in a window: those of the highest steps, at most MOST."""
    wanted = _series_by_suite(session, chosen)
    gaps: list[Gap] = []
    seen: set[tuple[object, object]] = set()
    last: Found | None = None
    while wanted and len(gaps) <= MOST:
        rows = _unsucceeded(session, chosen, window, last)
        newest = []
        for row in rows:
            # Of several evaluations by one suite, the newest comes first.
            if (place := (row.checkpoint_id, row.suite_digest)) not in seen:
                seen.add(place)
                newest.append(row)
        gaps += _gaps(session, newest, wanted)
        if len(rows) < AT_ONCE:
            break
        last = rows[-1]
    return Gaps(gaps[:MOST][::-1], len(gaps) > MOST)


def gaps_mark(session: Session, run: Run) -> list[int]:
    """Return numbers that differ whenever the gaps of a run do, for the tag of an answer.

    An evaluation leaves the set by succeeding or with its checkpoint, joins the set under a new id, and has one event
    more after every change of its state.
    """
    query = (
        select(func.count(), func.coalesce(func.max(Evaluation.id), 0))
        .add_columns(func.coalesce(func.sum(Evaluation.event_count), 0))
        .select_from(Evaluation)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Checkpoint.run_id == run.id, Evaluation.state != "succeeded")
    )
    return [int(number) for number in session.execute(query).one()]


def _series_by_suite(session: Session, chosen: Chosen) -> dict[tuple[str, str], list[int]]:
    """Return the ids of the chosen series that each suite has values in, by the suite's digest and the variant.

    The newest evaluation of the run in which all tasks of a suite succeeded tells; without one, the newest in which
    some tasks did.
    """
    newest: dict[str, int] = {}
    for state in ("partly_failed", "succeeded"):
        query = (
            select(Evaluation.suite_digest, func.max(Evaluation.id).label("id"))
            .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
            .where(Checkpoint.run_id == chosen.run.id, Evaluation.state == state)
            .group_by(Evaluation.suite_digest)
        )
        newest |= {row.suite_digest: row.id for row in session.execute(query)}
    digests = {evaluation: suite for suite, evaluation in newest.items()}
    series: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for key, head in chosen.heads.items():
        series.setdefault((head.metric, head.protocol), []).append((head.variant, key))
    found: dict[tuple[str, str], list[int]] = {}
    measured = select(Task.evaluation_id, Task.metrics).where(
        Task.evaluation_id.in_(digests), Task.metrics.is_not(None)
    )
    for evaluation, metrics in session.execute(measured):
        for metric in metrics or ():
            for variant, key in series.get((metric["name"], metric["protocol"]), ()):
                found.setdefault((digests[evaluation], variant), []).append(key)
    return found


def _unsucceeded(session: Session, chosen: Chosen, window: Window, last: Found | None) -> Sequence[Found]:
    """Return evaluations that did not succeed, by falling step and id: those that follow `last`."""
    place = Checkpoint.step if window.x == "step" else Checkpoint.tokens_seen
    query = (
        select(Evaluation.id, Evaluation.checkpoint_id, Evaluation.suite, Evaluation.suite_digest, Evaluation.state)
        .add_columns(Evaluation.error, Checkpoint.step, Checkpoint.variant)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Checkpoint.run_id == chosen.run.id, Checkpoint.replaced_at.is_(None), Evaluation.state != "succeeded")
        .where(Checkpoint.variant.in_({head.variant for head in chosen.heads.values()}), place.is_not(None))
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


def _gaps(session: Session, rows: Sequence[Found], wanted: Mapping[tuple[str, str], list[int]]) -> list[Gap]:
    """Return the gaps that some evaluations are, in their order."""
    series = {row.id: wanted.get((row.suite_digest, row.variant), []) for row in rows}
    ids = {key for keys in series.values() for key in keys}
    query = select(MetricValue.series_id, MetricValue.step).where(
        MetricValue.series_id.in_(sorted(ids)), MetricValue.step.in_(sorted({row.step for row in rows}))
    )
    present = {(row.series_id, row.step) for row in session.execute(query)} if ids else set()
    return [_gap(row) for row in rows if any((key, row.step) not in present for key in series[row.id])]


def _gap(row: Found) -> Gap:
    message = (row.error or {}).get("message", "the service kept no reason")
    why: Why = "failed"
    if row.state in ("queued", "running"):
        why = "pending"
        message = "the evaluation waits in the queue" if row.state == "queued" else "the evaluation runs"
    elif row.state == "cancelled":
        why = "skipped" if is_skipped(message) else "cancelled"
    message = message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…"
    return Gap(step=row.step, variant=row.variant, suite=row.suite, evaluation=row.id, why=why, message=message)
