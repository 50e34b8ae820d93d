"""Curves of values that no service has."""

from __future__ import annotations

from collections.abc import Iterable

from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import BucketSeries
from evalsvc.web.curves import Curve


def plain_curve(
    label: str,
    metric: str,
    unit: str,
    rows: Iterable[tuple[int, Number, float | None, float | None, int | None]],
    protocol: str = "",
    baseline: Number | None = None,
) -> Curve:
    """Return a curve of values, from their x, value, ends of the interval, and number of items."""
    x, last, low, high, n = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], [], []]
    unknown: list[float | None] = [None] * len(x)
    zeros = [0] * len(x)
    series = BucketSeries(
        metric=metric,
        variant="raw",
        protocol=protocol,
        unit=unit,
        direction="none",
        baseline=baseline,
        differs={},
        x=x,
        last=last,
        stderr=unknown,
        low=low,
        high=high,
        n=n,
        min=unknown,
        max=unknown,
        mean=unknown,
        count=[1] * len(x),
        nan=zeros,
        positive_infinity=zeros,
        negative_infinity=zeros,
        imported=zeros,
        omitted=0,
    )
    return Curve(label, series)
