"""The list of runs, and the document of a run with its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from evalsvc import __version__
from evalsvc.spec import documents
from evalsvc.spec.protocol import digest
from evalsvc.store.history.gaps import UNSUCCEEDED, is_mended
from evalsvc.store.history.writing import Remember, history_tag
from evalsvc.store.pages import Order, PageRequest, read_page
from evalsvc.store.runs.base import base_view, base_views
from evalsvc.store.tables import Checkpoint, Evaluation, MetricValue, Run, Series
from evalsvc.store.views import IN_RUN, document_of, newest_evaluations, plan_view

MAX_CHECKPOINTS = 500
"""The most checkpoints in the document of a run."""


def runs_view(
    session: Session, page: PageRequest, remember: Remember = lambda run, tag, make: make()
) -> documents.Runs:
    """Return a page of the runs, ordered by name. The slow count of a run's values is asked of `remember`."""
    rows, next_cursor = read_page(session, select(Run), Order([Run.name]), ["runs"], page)
    runs = [row.Run for row in rows]
    ids = [run.id for run in runs]
    posted = session.execute(
        select(Checkpoint.run_id, func.count(), func.max(Checkpoint.step))
        .where(Checkpoint.run_id.in_(ids), Checkpoint.replaced_at.is_(None))
        .group_by(Checkpoint.run_id)
    )
    checkpoints = {run_id: (number, last_step) for run_id, number, last_step in posted}
    waiting = _checkpoints_with(session, ids, Evaluation.state.in_(("queued", "running")))
    failed = _checkpoints_with(session, ids, Evaluation.state.in_(("failed", "partly_failed")), ~is_mended())
    bases = base_views(session, runs)
    last_steps = [(run_id, last_step) for run_id, (_, last_step) in checkpoints.items()]
    newest = select(Checkpoint.run_id, Checkpoint.tags).where(Checkpoint.replaced_at.is_(None))
    newest = newest.where(tuple_(Checkpoint.run_id, Checkpoint.step).in_(last_steps))
    rows_of_tags = session.execute(newest.order_by(Checkpoint.variant == "raw"))  # raw is last, and stays
    tags = {row.run_id: row.tags for row in rows_of_tags}
    summaries = []
    for run in runs:
        values, last_value_step = _measured(session, run, remember)
        number, last_step = checkpoints.get(run.id, (0, None))
        summaries.append(
            document_of(
                documents.RunSummary,
                run,
                checkpoints=number,
                last_step=last_step,
                values=values,
                last_value_step=last_value_step,
                waiting=waiting.get(run.id, 0),
                failed=failed.get(run.id, 0),
                tags={key: str(value) for key, value in tags.get(run.id, {}).items()},
                base=bases[run.id],
            )
        )
    return documents.Runs(runs=summaries, next_cursor=next_cursor)


def runs_tag(session: Session, page: PageRequest) -> str:
    """Return a text that changes whenever a page of the runs does, found without reading the history."""
    runs = select(Run.created_at, Run.id, Run.name, Run.history_version, Run.base).order_by(Run.id)
    rows = [
        [row.id, row.name, row.created_at.isoformat(), row.history_version, row.base] for row in session.execute(runs)
    ]
    # Of all checkpoints: one that replaces another is new, and which are replaced takes a scan to know.
    checkpoints = select(func.count(Checkpoint.id), func.max(Checkpoint.id))
    unsucceeded = select(func.count(), func.max(Evaluation.id), func.sum(Evaluation.event_count))
    numbers = [
        [int(str(number or 0)) for number in session.execute(query).one()]
        for query in (checkpoints, unsucceeded.where(Evaluation.state.in_(UNSUCCEEDED)))
    ]
    return digest([__version__, list(vars(page).values()), rows, *numbers])[:32]


def _measured(session: Session, run: Run, remember: Remember) -> tuple[int, int | None]:
    def make() -> bytes:
        query = select(func.count(), func.max(MetricValue.step)).join(Series, Series.id == MetricValue.series_id)
        return json.dumps(list(session.execute(query.where(Series.run_id == run.id)).one())).encode()

    count, last = json.loads(remember(run.name, history_tag(run, __version__, ["measured"]), make))
    return count, last


def _checkpoints_with(session: Session, run_ids: Sequence[int], *conditions: ColumnElement[bool]) -> dict[int, int]:
    query = (
        select(Checkpoint.run_id, func.count(Checkpoint.id.distinct()).label("number"))
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .where(*conditions, Checkpoint.replaced_at.is_(None), Checkpoint.run_id.in_(run_ids))
        .group_by(Checkpoint.run_id)
    )
    return {row.run_id: row.number for row in session.execute(query)}


def run_view(session: Session, run: Run) -> documents.Run:
    """Return a run with its plan, its base, and the checkpoints of the highest steps with their newest evaluations."""
    current = (Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
    newest_first = select(Checkpoint).where(*current).order_by(*(column.desc() for column in IN_RUN))
    checkpoints = session.scalars(newest_first.limit(MAX_CHECKPOINTS)).all()[::-1]
    evaluations = newest_evaluations(session, [checkpoint.id for checkpoint in checkpoints])
    return document_of(
        documents.Run,
        run,
        plan=plan_view(run),
        base=base_view(session, run),
        checkpoints=[
            document_of(documents.RunCheckpoint, checkpoint, evaluations=evaluations.get(checkpoint.id, []))
            for checkpoint in checkpoints
        ],
        checkpoint_count=session.scalar(select(func.count()).select_from(Checkpoint).where(*current)),
    )
