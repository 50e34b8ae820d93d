"""Choose series of a run by metric and variant, and tell the protocols of a metric apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec.documents.history import KnownMetric, SeriesHead
from evalsvc.spec.protocol import tell_apart
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Protocol, Run, Series
from evalsvc.store.views import document_of


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
    """Choose a run's series by metric and variant.

    Args:
        names: metrics, or patterns such as `arc_*/acc`; empty for all metrics.
        variant: the variant of the weights; None for all variants.

    Raises:
        UnknownName: there is no such run, metric or variant; near names are listed.
    """
    row = find_run(session, run)
    query = select(Series).where(Series.run_id == row.id).order_by(Series.metric, Series.variant, Series.id)
    everything = session.scalars(query).all()
    wanted = wanted_metrics({item.metric for item in everything}, names)
    variants = {item.variant for item in everything}
    if variant and variant not in variants:
        raise UnknownName.among("variant", variant, variants)
    chosen = [item for item in everything if item.metric in wanted and (not variant or item.variant == variant)]
    differs = _differing(session, chosen)
    heads = {
        item.id: document_of(
            SeriesHead, item, protocol=item.protocol_id, differs=differs[item.metric, item.protocol_id]
        )
        for item in chosen
    }
    known = {item.metric: document_of(KnownMetric, item, name=item.metric) for item in everything}
    return Chosen(row, heads, list(known.values()))


def wanted_metrics(metrics: Set[str], names: Sequence[str]) -> Set[str]:
    """Return the metrics that match a name or pattern in `names`, or all metrics if `names` is empty.

    Raises:
        UnknownName: a name or pattern matches no metric; near names are listed.
    """
    for name in names:
        if not any(matches(metric, name) for metric in metrics):
            raise UnknownName.among("metric", name, metrics, "a metric appears once an evaluation has measured it")
    return {metric for metric in metrics if any(matches(metric, name) for name in names)} if names else metrics


def matches(name: str, pattern: str) -> bool:
    """Tell whether the name of a metric equals or matches a pattern."""
    return name == pattern or fnmatchcase(name, pattern)


def _differing(session: Session, series: Iterable[Series]) -> dict[tuple[str, str], dict[str, object]]:
    """Return the fields that tell the protocols of a metric apart, by metric and protocol."""
    places = dict.fromkeys((item.metric, item.protocol_id) for item in series)
    several = Counter(metric for metric, _ in places)
    ids = {identity for metric, identity in places if several[metric] > 1}
    rows = session.scalars(select(Protocol).where(Protocol.id.in_(ids))) if ids else ()
    return tell_apart(places, {row.id: row.content for row in rows})
