"""Series of runs as points of a chart, with the lines and gaps around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean

from evalsvc.metrics.definitions import main_metric
from evalsvc.metrics.shown_metrics import companion_name
from evalsvc.spec.documents.fields import Direction, Number
from evalsvc.spec.documents.history import Buckets, BucketSeries, Gap, KnownMetric
from evalsvc.spec.protocol import describe_fields


@dataclass(frozen=True)
class Point:
    """A bucket of a series: its last value, and the range of its values."""

    x: int
    value: Number
    low: float | None
    """Lower end of the value's interval; None if the value has no interval."""
    high: float | None
    stderr: float | None
    n: int | None
    count: int
    """Number of values in the bucket."""
    least: float | None
    """Least finite value of the bucket; None if the bucket has one value."""
    most: float | None
    imported: bool
    """Whether a value of the bucket was imported."""
    virtual: bool
    """Whether the checkpoint was computed from others."""
    smooth: float | None = None
    """Smoothed value; None without smoothing, and for values that are not finite."""
    companions: Mapping[str, Number] | None = None
    """Values that are read next to the value, such as its perplexity, by their short names."""

    @property
    def kind(self) -> str:
        """Origin of the value."""
        return "imported" if self.imported else "virtual" if self.virtual else "measured"


@dataclass(frozen=True)
class Curve:
    """A metric of one variant of a run under one protocol."""

    run: str
    variant: str
    metric: str
    protocol: str
    unit: str
    direction: Direction
    baseline: Number | None
    """Value of a model that knows nothing."""
    differs: str
    """Fields that distinguish the protocol, in words; empty if the metric has one protocol."""
    points: Sequence[Point]

    @property
    def label(self) -> str:
        """Name of the run, with the variant where the weights are no trained ones."""
        return self.run if self.variant == "raw" else f"{self.run}:{self.variant}"


@dataclass(frozen=True)
class Line:
    """A value that curves are held against: chance, the unigram loss, a base."""

    value: float
    text: str


@dataclass(frozen=True)
class Missing:
    """A gap of one curve."""

    label: str
    """Label of the curve."""
    gap: Gap


def curves_of(buckets: Buckets, smoothing: float = 0.0) -> Iterator[Curve]:
    """Yield the curves of a run; `smoothing` is the weight of neighbours in the average, from 0 (none) to 1."""
    for series in buckets.series:
        points = list(_points(series))
        yield Curve(
            buckets.run,
            series.variant,
            series.metric,
            series.protocol,
            series.unit,
            series.direction,
            series.baseline,
            describe_fields(series.differs),
            _smoothed(points, smoothing) if smoothing else points,
        )


def companions_of(metric: str, known: Sequence[KnownMetric]) -> list[str]:
    """Return the metrics that are read next to a metric and have no panel of their own, such as its perplexity."""
    return [other.name for other in known if main_metric(other.name, {metric}) == metric]


def with_companions(curve: Curve, companions: Sequence[Curve]) -> Curve:
    """Return a curve whose points have the values of its companions at the same places, but for those that are lines.

    A companion has the curve's variant, and the same protocol or the only one of the companion.
    """
    values: dict[int, dict[str, Number]] = {}
    for other in _own(curve, companions):
        if _level(curve, other) is None:
            for point in other.points:
                values.setdefault(point.x, {})[companion_name(other.metric, curve.metric)] = point.value
    return replace(curve, points=[replace(point, companions=values.get(point.x)) for point in curve.points])


def lines_of(curve: Curve, companions: Sequence[Curve]) -> Iterator[Line]:
    """Yield the lines of a curve: chance, and companions in the same unit that never change, such as unigram losses."""
    if isinstance(curve.baseline, float) and isfinite(curve.baseline):
        yield Line(curve.baseline, f"chance {curve.baseline:.4g}")
    for other in _own(curve, companions):
        if (level := _level(curve, other)) is not None:
            yield Line(level, f"{companion_name(other.metric, curve.metric)} {level:.4g}")


def _level(curve: Curve, companion: Curve) -> float | None:
    """Return the value of a companion in the curve's unit that never changes; None for any other companion."""
    values = {point.value for point in companion.points}
    level = values.pop() if companion.unit == curve.unit and len(values) == 1 else None
    return level if isinstance(level, float) else None


def _own(curve: Curve, companions: Sequence[Curve]) -> Iterator[Curve]:
    of_variant = [other for other in companions if other.variant == curve.variant]
    for name in dict.fromkeys(other.metric for other in of_variant):
        named = [other for other in of_variant if other.metric == name]
        same = [other for other in named if other.protocol == curve.protocol]
        yield from same or (named if len(named) == 1 else ())


def missing_of(buckets: Buckets, curves: Sequence[Curve]) -> list[Missing]:
    """Return the gaps at steps where the curves of a run have no value."""
    labels = {curve.variant: curve.label for curve in curves}
    measured = {(point.x, curve.variant) for curve in curves for point in curve.points}
    return [
        Missing(labels[gap.variant], gap)
        for gap in buckets.gaps
        if gap.variant in labels and (gap.step, gap.variant) not in measured
    ]


def _points(series: BucketSeries) -> Iterator[Point]:
    for i, x in enumerate(series.x):
        several = series.count[i] > 1
        yield Point(
            x=x,
            value=series.last[i],
            low=series.low[i],
            high=series.high[i],
            stderr=series.stderr[i],
            n=series.n[i],
            count=series.count[i],
            least=series.min[i] if several else None,
            most=series.max[i] if several else None,
            imported=series.imported[i] > 0,
            virtual=bool(series.virtual) and series.virtual[i],
        )


def _smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """Return the points with the smoothed finite values: at each step, a line through the nearest values.

    Values weigh by the tricube of their distance (W. S. Cleveland, Journal of the American Statistical Association 74,
    1979). The line averages over as many as an exponential moving average, (1 + weight) / (1 − weight). The nearest
    values are at most a quarter of all, since a curve is no line over more.
    """
    known = [(point.x, point.value) for point in points if isinstance(point.value, float)]
    largest = max((abs(value) for _, value in known), default=0.0) or 1.0
    scaled = [(x, value / largest) for x, value in known]  # so that no sum overflows
    size = min(round(1 + 1.41 * (1 + weight) / (1 - weight)), max(3, len(known) // 4))
    start, smooth = 0, dict[int, float]()
    for x, _ in known:
        while start + size < len(known) and known[start + size][0] - x < x - known[start][0]:
            start += 1
        smooth[x] = largest * _line_at(x, scaled[start : start + size])
    return [replace(point, smooth=smooth[point.x] if isinstance(point.value, float) else None) for point in points]


def _line_at(x: int, nearest: Sequence[tuple[int, float]]) -> float:
    """Return the value at `x` of the line through the nearest values, no farther than the values reach."""
    away, values = [other - x for other, _ in nearest], [value for _, value in nearest]
    reach = max(map(abs, away)) or 1
    weights = [(1 - (abs(distance) / reach) ** 3) ** 3 for distance in away]
    centre = fmean(away, weights)
    tilts = [weight * (distance - centre) for weight, distance in zip(weights, away, strict=True)]
    rise = sum(tilt * value for tilt, value in zip(tilts, values, strict=True))
    run = sum(tilt * distance for tilt, distance in zip(tilts, away, strict=True))
    level = fmean(values, weights) - centre * rise / (run or 1.0)
    return min(max(level, min(values)), max(values))
