"""Perplexities, unigram losses and chance, which tables show next to the metric that they are a yardstick of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evalsvc.metrics.definitions import main_metric
from evalsvc.spec.documents.fields import Number


@dataclass(frozen=True)
class Place:
    """What tells a value or a series of a metric from the others."""

    metric: str
    variant: str
    protocol: str


@dataclass(frozen=True)
class TableRows:
    """Which values have a row of their own, and which are shown in the rows of others."""

    own: Sequence[int]
    """Positions of the values with a row."""
    companions: Mapping[int, Sequence[int]]
    """By the position of a value with a row, the positions of the values that are shown next to it."""


def divide_rows(places: Sequence[Place], named: Collection[str] = ()) -> TableRows:
    """Divide values into rows and companions; the metrics in `named` have rows of their own.

    A companion has the variant of its metric, and the same protocol or the only one of the companion.
    """
    known = {place.metric for place in places}
    positions: dict[tuple[str, str], list[int]] = {}
    for position, place in enumerate(places):
        positions.setdefault((place.metric, place.variant), []).append(position)
    own, companions = [], dict[int, list[int]]()
    for position, place in enumerate(places):
        main = None if place.metric in named else main_metric(place.metric, known)
        mains = positions.get((str(main), place.variant), [])
        same = [at for at in mains if places[at].protocol == place.protocol]
        if not same and len(positions[place.metric, place.variant]) == 1:
            same = mains
        for at in same:
            companions.setdefault(at, []).append(position)
        if not same:
            own.append(position)
    return TableRows(own, companions)


def companion_name(metric: str, main: str) -> str:
    """Return what a companion is called next to its metric: `perplexity` of `loss/text_perplexity`."""
    second, own = metric.rpartition("/")[2], main.rpartition("/")[2]
    return second.removeprefix(f"{own}_").replace("_", " ")


def yardsticks(companions: Sequence[tuple[str, Number]], chance: Number | None) -> str:
    """Return the cell of a row, `perplexity 10.1; chance 4.16`, from companions with their names, and from chance."""
    found = [*companions, *([] if chance is None else [("chance", chance)])]
    return "; ".join(f"{name} {_short(value)}" for name, value in found)


def _short(value: Number) -> str:
    """Return a number with four digits, a large one with all that are before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
