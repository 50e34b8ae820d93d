"""Which series of a run are meant, and what tells those of one metric apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from fnmatch import fnmatchcase

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec.documents.history import KnownMetric, SeriesHead
from evalsvc.spec.protocol import tell_apart
from evalsvc.store.tables import Protocol, Run, Series
from evalsvc.store.views import document_of


def run_series(session: Session, run: Run) -> Sequence[Series]:
    """All series of a run, by metric, variant and age."""
    return session.scalars(
        select(Series).where(Series.run_id == run.id).order_by(Series.metric, Series.variant, Series.id)
    ).all()


def choose_series(everything: Sequence[Series], names: Sequence[str], variant: str | None) -> list[Series]:
    """Those of the metrics `names` (or patterns, `arc_*/acc`; none: all) and of the variant.

    Raises:
        UnknownName: there is no such metric or variant; near ones are named.
    """
    wanted = wanted_metrics({item.metric for item in everything}, names)
    variants = {item.variant for item in everything}
    if variant and variant not in variants:
        raise UnknownName.among("variant", variant, variants)
    return [item for item in everything if item.metric in wanted and (not variant or item.variant == variant)]


def wanted_metrics(metrics: Set[str], names: Sequence[str]) -> Set[str]:
    """Those of the metrics that `names` (or patterns) ask for; without any, all.

    Raises:
        UnknownName: there is no such metric; near ones are named.
    """
    for name in names:
        if not any(matches(metric, name) for metric in metrics):
            raise UnknownName.among("metric", name, metrics, "it appears once an evaluation has measured it")
    return {metric for metric in metrics if any(matches(metric, name) for name in names)} if names else metrics


def matches(name: str, pattern: str) -> bool:
    """Whether a metric's name is the pattern, or fits it."""
    return name == pattern or fnmatchcase(name, pattern)


def series_heads(session: Session, chosen: Sequence[Series]) -> list[SeriesHead]:
    """Return what an answer says of each series before its values."""
    differs = _differing(session, chosen)
    return [
        document_of(SeriesHead, item, protocol=item.protocol_id, differs=differs[item.metric, item.protocol_id])
        for item in chosen
    ]


def known_metrics(everything: Iterable[Series]) -> list[KnownMetric]:
    """Return every metric of a run once."""
    listed = {item.metric: document_of(KnownMetric, item, name=item.metric) for item in everything}
    return list(listed.values())


def _differing(session: Session, series: Iterable[Series]) -> dict[tuple[str, str], dict[str, object]]:
    """By metric and protocol: the fields that tell the protocols of a metric apart."""
    places = dict.fromkeys((item.metric, item.protocol_id) for item in series)
    several = Counter(metric for metric, _ in places)
    ids = {identity for metric, identity in places if several[metric] > 1}
    rows = session.scalars(select(Protocol).where(Protocol.id.in_(ids))) if ids else ()
    return tell_apart(places, {row.id: row.content for row in rows})
