"""The list of runs."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.store.lists.pages import Order, PageRequest, read_page
from evalsvc.store.tables import Checkpoint, MetricValue, Run, Series
from evalsvc.store.views import document_of


def runs_view(session: Session, page: PageRequest) -> documents.Runs:
    """Return a page of the runs, ordered by name, with their numbers of checkpoints and values."""
    query = select(Run.id, Run.created_at)
    rows, next_cursor = read_page(session, query, Order([Run.name]), ["runs"], page)
    ids = [row.id for row in rows]
    posted = session.execute(
        select(Checkpoint.run_id, func.count().label("number"), func.max(Checkpoint.step).label("last_step"))
        .where(Checkpoint.run_id.in_(ids), Checkpoint.replaced_at.is_(None))
        .group_by(Checkpoint.run_id)
    )
    checkpoints = {row.run_id: row for row in posted}
    measured = session.execute(
        select(Series.run_id, func.count())
        .join(MetricValue, MetricValue.series_id == Series.id)
        .where(Series.run_id.in_(ids))
        .group_by(Series.run_id)
    )
    values = dict(measured.all())
    return documents.Runs(
        runs=[
            document_of(
                documents.RunSummary,
                row,
                checkpoints=checkpoints[row.id].number if row.id in checkpoints else 0,
                last_step=checkpoints[row.id].last_step if row.id in checkpoints else None,
                values=values.get(row.id, 0),
            )
            for row in rows
        ],
        next_cursor=next_cursor,
    )
