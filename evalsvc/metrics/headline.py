"""The default headline of a run: the metrics to show first where no suite names a headline."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, zip_longest

from evalsvc.metrics.definitions import ANY, DEFINITIONS, main_metric
from evalsvc.spec.documents.fields import Direction

MOST = 6
"""Maximum number of metrics in a default headline."""


def default_headline(metrics: Mapping[str, Direction]) -> list[str]:
    """Return at most `MOST` of a run's metrics, which are given with their directions.

    Tasks and benchmarks, which are the first halves of the names, take turns. Each gives the metric that comes first in
    the table of definitions, then the next one. Perplexities, unigram losses and other companions are left out, and so
    are metrics without a better side where other metrics have one.
    """
    mains = [name for name in metrics if main_metric(name, metrics) is None]
    candidates = [name for name in mains if metrics[name] != "none"] or mains
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in candidates:
        first, _, second = name.partition("/")
        groups.setdefault(first, []).append((_rank(second), name))
    ranked = sorted(sorted(group) for group in groups.values())
    turns = chain.from_iterable(zip_longest(*ranked))
    return [turn[1] for turn in turns if turn is not None][:MOST]


def _rank(name: str) -> int:
    entries = enumerate(DEFINITIONS)
    places = (place for place, definition in entries if definition.names != ANY and definition.matches(name))
    return next(places, len(DEFINITIONS))
