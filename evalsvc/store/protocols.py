"""Protocols by id, and the list of protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec import documents
from evalsvc.store.history.series import wanted_metrics
from evalsvc.store.lookup import find_run
from evalsvc.store.pages import Order, PageRequest, page_of_names, read_page
from evalsvc.store.tables import Protocol, Series
from evalsvc.store.views import protocols_view

MAX_METRICS = 100
"""The most metrics in the entry of a protocol."""


def read_protocol(session: Session, protocol_id: str) -> Mapping[str, object]:
    row = session.get(Protocol, protocol_id)
    if row is None:
        raise UnknownName.among("protocol", protocol_id, session.scalars(select(Protocol.id)))
    return row.content


def listed_protocols(
    session: Session, run: str | None, metrics: Sequence[str], page: PageRequest
) -> documents.Protocols:
    """Return a page of the protocols by which a run has values of metrics, or patterns, ordered by id."""
    question = ["protocols", run, list(metrics)]
    if run is None and not metrics:
        rows, next_cursor = read_page(session, select(Protocol.id), Order([Protocol.id]), question, page)
        ids = [row[0] for row in rows]
    else:
        ids, next_cursor = page_of_names(_measured_by(session, run, metrics), question, page)
    contents = protocols_view(session, ids)
    measured = select(Series.protocol_id, Series.metric).where(Series.protocol_id.in_(ids)).distinct()
    names: dict[str, list[str]] = {}
    for protocol_id, metric in session.execute(measured.order_by(Series.metric)):
        names.setdefault(protocol_id, []).append(metric)
    counted = select(Series.protocol_id, func.count(Series.run_id.distinct())).where(Series.protocol_id.in_(ids))
    runs = dict(session.execute(counted.group_by(Series.protocol_id)).all())
    return documents.Protocols(
        protocols=[
            documents.ListedProtocol(
                id=protocol_id,
                content=contents[protocol_id],
                metrics=names.get(protocol_id, [])[:MAX_METRICS],
                runs=runs.get(protocol_id, 0),
            )
            for protocol_id in ids
        ],
        next_cursor=next_cursor,
    )


def _measured_by(session: Session, run: str | None, metrics: Sequence[str]) -> set[str]:
    # Patterns are matched in Python: a query with thousands of matching names as parameters would be slower.
    series = select(Series.metric, Series.protocol_id).distinct()
    if run is not None:
        series = series.where(Series.run_id == find_run(session, run).id)
    pairs = session.execute(series).all()
    wanted = wanted_metrics({metric for metric, _ in pairs}, metrics)
    return {protocol_id for metric, protocol_id in pairs if metric in wanted}
