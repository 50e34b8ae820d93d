"""Companions of metrics, such as perplexities, unigram losses and chance: tables show them next to the metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evalsvc.metrics.definitions import main_metric
from evalsvc.spec.documents.fields import Number


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
    """Positions of the values that have a row."""
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
