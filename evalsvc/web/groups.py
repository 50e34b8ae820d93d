"""Groups of runs by a tag, with the mean and the spread of their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from evalsvc.client.reader import ServiceReader
from evalsvc.spec.documents import HeadlineSeries, RunSummary

Way = Literal["by", "across"]
"""`by`: runs with the same value of a tag. `across`: runs that differ in nothing but the tag, such as the seed."""


@dataclass(frozen=True)
class Spread:
    """A metric of the runs of a group, at the highest step that all of them have reached."""

    metric: str
    n: int
    """Number of runs with a finite value under the protocol that most of them have."""
    mean: float
    deviation: float | None
    """Standard deviation between runs; None for one run."""
    low: float
    high: float
    first_step: int
    last_step: int
    """Steps of the values, from the lowest to the highest."""
    other_protocols: int
    """Number of runs that are left out since they were measured by another protocol."""


@dataclass(frozen=True)
class Group:
    """Runs that belong together."""

    title: str
    runs: Sequence[RunSummary]
    spreads: dict[str, Spread]
    """Spreads by metric."""


def grouped(runs: Iterable[RunSummary], way: Way, tag: str) -> dict[str, list[RunSummary]]:
    """Return the runs by the title of their group, in the order of the runs. Runs without the tag have one group."""
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        groups.setdefault(_title(run, way, tag), []).append(run)
    return groups


def _title(run: RunSummary, way: Way, tag: str) -> str:
    if tag not in run.tags:
        return f"without the tag {tag}"
    if way == "by":
        return f"{tag}={run.tags[tag]}"
    rest = [f"{key}={value}" for key, value in sorted(run.tags.items()) if key != tag]
    return ", ".join(rest) or f"no tag but {tag}"


def groups_of(source: ServiceReader, groups: dict[str, list[RunSummary]], metrics: Sequence[str]) -> Iterator[Group]:
    """Yield the groups with the spreads of some metrics, or without any of the headline metrics."""
    for title, runs in groups.items():
        steps = [run.last_value_step for run in runs if run.last_value_step is not None]
        rows = source.headlines([run.name for run in runs], metrics, last=min(steps, default=None))
        series = [item for row in rows for item in row.series]
        names = dict.fromkeys(item.metric for item in series)
        spreads = {name: _spread(name, [item for item in series if item.metric == name]) for name in names}
        yield Group(title, runs, {name: spread for name, spread in spreads.items() if spread is not None})


def _spread(metric: str, series: Sequence[HeadlineSeries]) -> Spread | None:
    protocols = [item.protocol for item in series]
    protocol = max(protocols, key=protocols.count)
    finite = [
        (item.latest.step, item.latest.value)
        for item in series
        if item.protocol == protocol and isinstance(item.latest.value, float)
    ]
    if not finite:
        return None
    values, steps = [value for _, value in finite], [step for step, _ in finite]
    return Spread(
        metric=metric,
        n=len(values),
        mean=fmean(values),
        deviation=stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
        first_step=min(steps),
        last_step=max(steps),
        other_protocols=len(series) - protocols.count(protocol),
    )
