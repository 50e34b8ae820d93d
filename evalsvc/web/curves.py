"""Series of runs as points of a chart."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from evalsvc.metrics.intervals import LEVEL, Spread
from evalsvc.spec.documents.fields import Direction, Number, Word
from evalsvc.spec.documents.history import Buckets, BucketSeries, Gap
from evalsvc.spec.protocol import describe_fields


@dataclass(frozen=True)
class Point:
    """A bucket of a series: its last value, and the range of its other values."""

    x: int
    value: float | Word
    low: float | None
    """Lower end of the value's interval; None if the value has no standard error."""
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
    """Moving average up to the point; None without smoothing, and for values that are not finite."""


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


def curves_of(buckets: Buckets, smoothing: float = 0.0, virtual: Collection[tuple[int, str]] = ()) -> Iterator[Curve]:
    """Yield the curves of a run.

    Args:
        buckets: the run's history in buckets.
        smoothing: weight of the past in the moving average, from 0 (no average) to 1 (excluded).
        virtual: steps and variants of checkpoints that were computed from others.
    """
    for series in buckets.series:
        steps = {step for step, variant in virtual if variant == series.variant} if buckets.x == "step" else set()
        points = list(_points(series, steps))
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


def gaps_of(buckets: Buckets, curves: Sequence[Curve]) -> list[Gap]:
    """Return the gaps at steps where the curves of a run have no value."""
    measured = {(point.x, curve.variant) for curve in curves for point in curve.points if curve.run == buckets.run}
    return [gap for gap in buckets.gaps if (gap.step, gap.variant) not in measured]


def _points(series: BucketSeries, virtual: Collection[int]) -> Iterator[Point]:
    for i, x in enumerate(series.x):
        value, stderr, n, count = series.last[i], series.stderr[i], series.n[i], series.count[i]
        low, high = _interval(value, stderr, (series.groups[i] if series.groups else None) or n)
        several = count > 1
        yield Point(
            x=x,
            value=value,
            low=low,
            high=high,
            stderr=stderr,
            n=n,
            count=count,
            least=series.min[i] if several else None,
            most=series.max[i] if several else None,
            imported=series.imported[i] > 0,
            virtual=x in virtual,
        )


def _interval(value: float | Word, stderr: float | None, independent: int | None) -> tuple[float | None, float | None]:
    """Return the interval of a value at the level `LEVEL`; see `metrics.intervals.Spread`."""
    if stderr is None or not isinstance(value, float):
        return None, None
    dof = inf if independent is None else max(1, independent - 1)
    below, above = Spread(stderr, dof).reach((1 - LEVEL) / 2)
    return value - below, value + above


def _smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """Return the points with the exponential moving average of the finite values.

    The average after k values is Σ wⁱ v₍ₖ₋ᵢ₎ / Σ wⁱ: dividing by the sum of the weights keeps the first values from
    being drawn to zero (D. Kingma and J. Ba, Adam, section 3).
    """
    total = weights = 0.0
    smoothed = []
    for point in points:
        average = None
        if isinstance(point.value, float):
            total, weights = weight * total + point.value, weight * weights + 1
            average = total / weights
        smoothed.append(Point(**{**vars(point), "smooth": average}))
    return smoothed
