"""Numbers, times and names as pages show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import quote

from evalsvc.spec.documents.history import HeadlineSeries


def number(value: object) -> str:
    """Return a number with five significant digits; any other value as text."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def signed(difference: object) -> str:
    """Return a difference with its sign and three significant digits; a dash if the difference is unknown."""
    return f"{difference:+.3g}".replace("-", "−") if isinstance(difference, float) else "–"


def error(stderr: object) -> str:
    """Return a standard error as ±, with two significant digits; empty if the error is unknown."""
    return f"± {stderr:.2g}" if isinstance(stderr, float) else ""


def bytes_(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


segment = partial(quote, safe="")


def sparkline(series: HeadlineSeries, width: int = 96, height: int = 22) -> tuple[str, tuple[str, str] | None] | None:
    """Return the points of a line through the finite values of a series, and the place of the best one, for an SVG.
    None with fewer than two values. They are placed by step, or by log(1 + step) where half of the steps are in the
    first tenth of the range."""
    best = series.best
    values = {step: value for step, value in zip(series.x, series.values, strict=True) if isinstance(value, float)}
    values |= {best.step: best.value} if best is not None and isinstance(best.value, float) else {}
    steps = sorted(values)
    if len(steps) < 2:
        return None
    far = 10 * (steps[len(steps) // 2] - steps[0]) < steps[-1] - steps[0]
    place = {step: math.log1p(step) if far else step for step in steps}
    low, high = min(values.values()), max(values.values())
    first, across = place[steps[0]], (width - 2) / (place[steps[-1]] - place[steps[0]])
    up = (height - 2) / (high - low or 1)
    at = {x: (f"{1 + across * (place[x] - first):.1f}", f"{height - 1 - up * (values[x] - low):.1f}") for x in steps}
    return " ".join(map(",".join, at.values())), None if best is None else at.get(best.step)


FILTERS: Mapping[str, Callable[..., object]] = {
    "number": number,
    "error": error,
    "signed": signed,
    "bytes": bytes_,
    "duration": duration,
    "segment": segment,
    "sparkline": sparkline,
}
