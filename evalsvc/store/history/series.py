"""Choose series of a run by metric and variant, and a range of the x axis: training steps, or tokens seen.

And the protocols by which series were measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, func, select, true
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.metrics.definitions import title_of
from evalsvc.spec import documents
from evalsvc.spec.documents.history import Axis, KnownMetric, SeriesHead
from evalsvc.spec.protocol import EXTERNAL, tell_apart
from evalsvc.store.lookup import find_run
from evalsvc.store.pages import Order, PageRequest, page_of_names, read_page
from evalsvc.store.tables import Checkpoint, MetricValue, Protocol, Run, Series
from evalsvc.store.views import document_of, protocols_view

Columns = TypeVarTuple("Columns")

MAX_METRICS = MAX_RUNS = 100
"""The most metrics, and the most names of runs, in the entry of a protocol."""


@dataclass(frozen=True)
class Chosen:
    """The series of a run that a request names."""

    run: Run
    heads: Mapping[int, SeriesHead]
    """The heads of the series by id, in the order of the answer: by metric, variant and age."""
    names: list[KnownMetric]
    """All metrics of the run, chosen or not."""

    @property
    def ids(self) -> list[int]:
        """The sorted ids of the series."""
        return sorted(self.heads)


def choose_series(session: Session, run: str, names: Sequence[str], variant: str | None) -> Chosen:
    """Choose a run's series by variant, and by metrics or patterns such as `arc_*/acc`; all without names."""
    row = find_run(session, run)
    rows = session.scalars(select(Series).where(Series.run_id == row.id))
    # Sorted here, since databases order names by their own rules, and clients that read pages restore the order.
    everything = sorted(rows, key=lambda item: (item.metric, item.variant, item.id))
    wanted = wanted_metrics({item.metric for item in everything}, names)
    variants = {item.variant for item in everything}
    if variant and variant not in variants:
        raise UnknownName.among("variant", variant, variants)
    chosen = [item for item in everything if item.metric in wanted and (not variant or item.variant == variant)]
    places = dict.fromkeys((item.metric, item.protocol_id) for item in chosen)
    several = Counter(metric for metric, _ in places)
    ids = {identity for metric, identity in places if several[metric] > 1}
    is_external = Protocol.content["sampling"].as_string() == EXTERNAL
    with_origin = Protocol.id.in_({identity for _, identity in places}) & is_external
    protocols = session.scalars(select(Protocol).where(Protocol.id.in_(ids) | with_origin))
    differs = tell_apart(places, {protocol.id: protocol.content for protocol in protocols})
    heads = {
        item.id: document_of(
            SeriesHead,
            item,
            protocol=item.protocol_id,
            differs=differs[item.metric, item.protocol_id],
            title=title_of(item.metric),
        )
        for item in chosen
    }
    known = {
        item.metric: document_of(KnownMetric, item, name=item.metric, title=title_of(item.metric))
        for item in everything
    }
    return Chosen(row, heads, list(known.values()))


def wanted_metrics(metrics: Set[str], names: Sequence[str]) -> Set[str]:
    """Return the metrics that match a name or pattern; all metrics if `names` is empty."""
    wanted: set[str] = set()
    for name in names:  # a pattern for all metrics: few patterns are kept in compiled form
        if not (matching := {metric for metric in metrics if matches(metric, name)}):
            raise UnknownName.among("metric", name, metrics, "a metric appears once an evaluation has measured it")
        wanted |= matching
    return wanted if names else metrics


def matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


@dataclass(frozen=True)
class Window:
    """A range of the x axis, both ends included."""

    x: Axis = "step"
    first: int | None = None
    """The lowest x; None for no bound."""
    last: int | None = None
    """The highest x; None for no bound."""

    def __post_init__(self) -> None:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise InvalidRequest(f"from={self.first} is greater than to={self.last}; swap the two")

    @property
    def column(self) -> SQLColumnExpression[int | None]:
        return MetricValue.step if self.x == "step" else Checkpoint.tokens_seen

    def narrow(self, query: Select[*Columns], series: Sequence[int]) -> Select[*Columns]:
        """Limit a query of values to the window and to series with these ids."""
        chosen = MetricValue.series_id.in_(series) if len(series) != 1 else MetricValue.series_id == series[0]
        query = query.select_from(MetricValue).where(chosen)
        if self.x == "tokens":
            query = query.join(Series, Series.id == MetricValue.series_id).join(Checkpoint, _is_of_value())
            query = query.where(Checkpoint.tokens_seen.is_not(None))
        query = query if self.first is None else query.where(self.column >= self.first)
        return query if self.last is None else query.where(self.column <= self.last)

    def require_tokens(self, session: Session, chosen: Chosen) -> None:
        """Raise InvalidRequest if x is tokens and no checkpoint of the run was posted with `tokens_seen`."""
        run = chosen.run
        if self.x == "step" or not chosen.heads:
            return
        posted = select(Checkpoint.id).where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        if session.scalar(posted.where(Checkpoint.tokens_seen.is_not(None)).limit(1)) is None:
            raise InvalidRequest(
                f"no checkpoint of run {run.name!r} was posted with tokens_seen; read the history with x=step"
            )

    def count_omitted(self, session: Session, series: Sequence[int]) -> Mapping[int, int]:
        """Return the number of values without an x by series, whatever the window."""
        if self.x == "step":
            return {}
        with_x = func.count(Checkpoint.tokens_seen)
        rows = session.execute(
            select(MetricValue.series_id, (func.count() - with_x).label("omitted"))
            .join(Series, Series.id == MetricValue.series_id)
            .outerjoin(Checkpoint, _is_of_value())
            .where(MetricValue.series_id.in_(series))
            .group_by(MetricValue.series_id)
        )
        return {row.series_id: row.omitted for row in rows}


WHOLE = Window()


def _is_of_value() -> ColumnElement[bool]:
    return and_(
        Checkpoint.run_id == Series.run_id,
        Checkpoint.variant == Series.variant,
        Checkpoint.step == MetricValue.step,
        Checkpoint.replaced_at.is_(None),
    )


def read_protocol(session: Session, protocol_id: str) -> Mapping[str, object]:
    row = session.get(Protocol, protocol_id)
    if row is None:
        raise UnknownName.among("protocol", protocol_id, session.scalars(select(Protocol.id)))
    return row.content


def listed_protocols(
    session: Session, run: str | None, metrics: Sequence[str], page: PageRequest, only: str | None = None
) -> documents.Protocols:
    """Return a page of the protocols by which a run has values of metrics, or patterns, ordered by id."""
    question = ["protocols", run, list(metrics), only]
    if run is None and not metrics:
        chosen = select(Protocol.id).where(true() if only is None else Protocol.id == only)
        rows, next_cursor = read_page(session, chosen, Order([Protocol.id]), question, page)
        ids = [row[0] for row in rows]
    else:
        measured_by = _measured_by(session, run, metrics)
        ids, next_cursor = page_of_names(measured_by & {only or identity for identity in measured_by}, question, page)
    contents = protocols_view(session, ids)
    used = select(Series.protocol_id, Series.metric, Run.name).join(Run, Run.id == Series.run_id)
    names: dict[str, set[str]] = {}
    runs: dict[str, set[str]] = {}
    for protocol_id, metric, name in session.execute(used.where(Series.protocol_id.in_(ids)).distinct()):
        names.setdefault(protocol_id, set()).add(metric)
        runs.setdefault(protocol_id, set()).add(name)
    return documents.Protocols(
        protocols=[
            documents.ListedProtocol(
                id=protocol_id,
                content=contents[protocol_id],
                metrics=sorted(names.get(protocol_id, ()))[:MAX_METRICS],
                runs=len(runs.get(protocol_id, ())),
                used_by=sorted(runs.get(protocol_id, ()))[:MAX_RUNS],
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
