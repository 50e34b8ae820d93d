"""Which metrics tables show: the first ones of a run, and companions, such as perplexities, next to others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest

from evalsvc.metrics.definitions import ANY, DEFINITIONS, main_metric
from evalsvc.spec.documents.fields import Direction, Number

MOST = 6


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


@lru_cache(4096)
def _rank(name: str) -> int:
    entries = enumerate(DEFINITIONS)
    places = (place for place, definition in entries if definition.names != ANY and definition.matches(name))
    return next(places, len(DEFINITIONS))


@dataclass(frozen=True)
class Place:
    """Key of a value or a series in a table."""

    metric: str
    variant: str
    protocol: str


@dataclass(frozen=True)
class TableRows:
    """Values that have rows, and companions that are shown in these rows."""

    shown: Sequence[int]
    companions: Mapping[int, Sequence[int]]
    """Positions of companions, by the position of the value whose row shows them."""


def divide_rows(places: Sequence[Place], named: Collection[str] = ()) -> TableRows:
    """Divide values into rows and companions; every metric in `named` has a row.

    A companion belongs to the value of its metric that has the same variant and protocol. If the companion has only one
    protocol, it belongs to every value of its metric with the same variant.
    """
    known = {place.metric for place in places}
    positions: dict[tuple[str, str], list[int]] = {}
    for position, place in enumerate(places):
        positions.setdefault((place.metric, place.variant), []).append(position)
    shown, companions = [], dict[int, list[int]]()
    for position, place in enumerate(places):
        main = None if place.metric in named else main_metric(place.metric, known)
        mains = positions.get((str(main), place.variant), [])
        same = [at for at in mains if places[at].protocol == place.protocol]
        if not same and len(positions[place.metric, place.variant]) == 1:
            same = mains
        for at in same:
            companions.setdefault(at, []).append(position)
        if not same:
            shown.append(position)
    return TableRows(shown, companions)


def companion_name(metric: str, main: str) -> str:
    """Return the short name of a companion next to its metric: `perplexity` for `loss/text_perplexity`."""
    name, main_name = metric.rpartition("/")[2], main.rpartition("/")[2]
    return name.removeprefix(f"{main_name}_").replace("_", " ")


def yardsticks(companions: Sequence[tuple[str, Number]], chance: Number | None) -> str:
    """Return the cell for companions with their names and for chance: `perplexity 10.1; chance 4.16`."""
    named = [*companions, *([] if chance is None else [("chance", chance)])]
    return "; ".join(f"{name} {_short(value)}" for name, value in named)


def _short(value: Number) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
