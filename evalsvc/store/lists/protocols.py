"""The list of protocols."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.store.history.series import wanted_metrics
from evalsvc.store.lists.pages import Order, PageRequest, read_page
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Protocol, Series
from evalsvc.store.views import document_of

MAX_METRICS = 100
"""Metrics that are named for each protocol."""


def protocols_view(session: Session, run: str | None, metrics: Sequence[str], page: PageRequest) -> documents.Protocols:
    """Return a page of the protocols, by id: of a run, and of metrics (which may be patterns), if they are given.

    Raises:
        UnknownName: no such run; no series (of the run) has such a metric.
        InvalidRequest: the cursor is from another list or from other filters.
    """
    query = select(Protocol)
    if run is not None or metrics:
        series = select(Series.protocol_id)
        if run is not None:
            series = series.where(Series.run_id == find_run(session, run).id)
        if metrics:
            known = session.scalars(series.with_only_columns(Series.metric).distinct()).all()
            series = series.where(Series.metric.in_(wanted_metrics(set(known), metrics)))
        query = query.where(Protocol.id.in_(series))
    rows, next_cursor = read_page(session, query, Order([Protocol.id]), ["protocols", run, list(metrics)], page)
    ids = [row.Protocol.id for row in rows]
    measured = select(Series.protocol_id, Series.metric).where(Series.protocol_id.in_(ids)).distinct()
    names: dict[str, list[str]] = {}
    for protocol_id, metric in session.execute(measured.order_by(Series.metric)):
        names.setdefault(protocol_id, []).append(metric)
    counted = select(Series.protocol_id, func.count(Series.run_id.distinct())).where(Series.protocol_id.in_(ids))
    runs = dict(session.execute(counted.group_by(Series.protocol_id)).all())
    return documents.Protocols(
        protocols=[
            document_of(
                documents.ListedProtocol,
                row.Protocol,
                metrics=names.get(row.Protocol.id, [])[:MAX_METRICS],
                runs=runs.get(row.Protocol.id, 0),
            )
            for row in rows
        ],
        next_cursor=next_cursor,
    )
