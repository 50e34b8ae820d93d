"""Series of runs as curves of a chart, with the lines and gaps around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean

from evalsvc.metrics.shown_metrics import companion_name
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import Buckets, BucketSeries, Gap


@dataclass(frozen=True)
class Curve:
    """A series of a run, with what is drawn over its values and read next to them."""

    run: str
    series: BucketSeries
    smooth: Sequence[float | None] = ()
    """Smoothed value of each bucket, None where the value is not finite; empty without smoothing."""
    companions: Mapping[str, Mapping[int, Number]] = field(default_factory=dict)
    """Values that are read next to the series, such as its perplexity, by their short names and x."""

    @property
    def label(self) -> str:
        """Name of the run, with the variant where the weights are no trained ones."""
        return self.run if self.series.variant == "raw" else f"{self.run}:{self.series.variant}"

    def origin(self, at: int) -> str:
        """Return the origin of a bucket's values: `measured`, `imported` or `virtual`."""
        if self.series.imported[at] > 0:
            return "imported"
        return "virtual" if self.series.virtual and self.series.virtual[at] else "measured"

    def companions_at(self, x: int) -> dict[str, Number]:
        return {name: values[x] for name, values in self.companions.items() if x in values}


@dataclass(frozen=True)
class Line:
    """A value that curves are held against: chance, the unigram loss, a base."""

    value: float
    text: str


@dataclass(frozen=True)
class Missing:
    label: str
    gap: Gap


def companions_of(series: BucketSeries, others: Sequence[BucketSeries]) -> dict[str, dict[int, Number]]:
    """Return the values of a series' companions by short name and x, but for companions that are lines. A companion has
    the variant of the series, and the same protocol or the only one of the companion."""
    return {
        companion_name(other.metric, series.metric): dict(zip(other.x, other.last, strict=True))
        for other in _matching(series, others)
        if _level(series, other) is None
    }


def lines_of(series: BucketSeries, others: Sequence[BucketSeries]) -> Iterator[Line]:
    """Yield the lines of a series: chance, and companions in its unit that never change, such as unigram losses."""
    if isinstance(series.baseline, float) and isfinite(series.baseline):
        yield Line(series.baseline, f"chance {series.baseline:.4g}")
    for other in _matching(series, others):
        if (level := _level(series, other)) is not None:
            yield Line(level, f"{companion_name(other.metric, series.metric)} {level:.4g}")


def _level(series: BucketSeries, companion: BucketSeries) -> float | None:
    values = set(companion.last)
    level = values.pop() if companion.unit == series.unit and len(values) == 1 else None
    return level if isinstance(level, float) else None


def _matching(series: BucketSeries, others: Sequence[BucketSeries]) -> Iterator[BucketSeries]:
    of_variant = [other for other in others if other.variant == series.variant]
    for name in dict.fromkeys(other.metric for other in of_variant):
        named = [other for other in of_variant if other.metric == name]
        same = [other for other in named if other.protocol == series.protocol]
        yield from same or (named if len(named) == 1 else ())


def missing_of(buckets: Buckets, curves: Sequence[Curve]) -> list[Missing]:
    """Return the gaps at steps where the curves of a run have no value."""
    labels = {curve.series.variant: curve.label for curve in curves}
    measured = {(x, curve.series.variant) for curve in curves for x in curve.series.x}
    return [
        Missing(labels[gap.variant], gap)
        for gap in buckets.gaps
        if gap.variant in labels and (gap.step, gap.variant) not in measured
    ]


def smoothed(series: BucketSeries, weight: float) -> list[float | None]:
    """Return the smoothed finite values: at each step, a line through the nearest values.

    `weight` is that of neighbours in the average, above 0 and below 1. Values weigh by the tricube of their distance
    (W. S. Cleveland, Journal of the American Statistical Association 74, 1979). The line averages over as many as an
    exponential moving average, (1 + weight) / (1 − weight). The nearest values are at most a quarter of all, since a
    curve is no line over more.
    """
    known = [(x, value) for x, value in zip(series.x, series.last, strict=True) if isinstance(value, float)]
    largest = max((abs(value) for _, value in known), default=0.0) or 1.0
    scaled = [(x, value / largest) for x, value in known]  # so that no sum overflows
    size = min(round(1 + 1.41 * (1 + weight) / (1 - weight)), max(3, len(known) // 4))
    start, smooth = 0, dict[int, float]()
    for x, _ in known:
        while start + size < len(known) and known[start + size][0] - x < x - known[start][0]:
            start += 1
        smooth[x] = largest * _line_at(x, scaled[start : start + size])
    return [smooth.get(x) for x in series.x]


def _line_at(x: int, nearest: Sequence[tuple[int, float]]) -> float:
    away, values = [other - x for other, _ in nearest], [value for _, value in nearest]
    reach = max(map(abs, away)) or 1
    weights = [(1 - (abs(distance) / reach) ** 3) ** 3 for distance in away]
    centre = fmean(away, weights)
    tilts = [weight * (distance - centre) for weight, distance in zip(weights, away, strict=True)]
    rise = sum(tilt * value for tilt, value in zip(tilts, values, strict=True))
    run = sum(tilt * distance for tilt, distance in zip(tilts, away, strict=True))
    level = fmean(values, weights) - centre * rise / (run or 1.0)
    return min(max(level, min(values)), max(values))
