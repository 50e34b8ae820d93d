"""Numbers, times and names as pages show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from urllib.parse import quote

from markupsafe import Markup

from evalsvc.spec.documents.history import HeadlineSeries


def number(value: object) -> str:
    """Return a number with five significant digits; any other value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}"


def signed(difference: object) -> str:
    """Return a difference with its sign and three significant digits; a dash if the difference is unknown."""
    return f"{difference:+.3g}".replace("-", "−") if isinstance(difference, float) else "–"


def error(stderr: object) -> str:
    """Return a standard error as ±, with two significant digits; empty if the error is unknown."""
    return f"± {stderr:.2g}" if isinstance(stderr, float) else ""


def bytes_(count: int) -> str:
    """Return a number of bytes in the largest unit that keeps it above 1."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that keeps the number above 1.5."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def segment(text: str) -> str:
    """Return a text as one segment of a path."""
    return quote(text, safe="")


def sparkline(series: HeadlineSeries, width: int = 96, height: int = 22) -> Markup:
    """Return the line through the finite values of a series, with a dot at the best one, as elements of an SVG.

    Values are placed by their steps; by the logarithms of 1 + step where half of the steps are in the first tenth of
    the range. Empty for fewer than two values.
    """
    values = {step: value for step, value in zip(series.x, series.values, strict=True) if isinstance(value, float)}
    if series.best is not None and isinstance(series.best.value, float):
        values[series.best.step] = series.best.value
    steps = sorted(values)
    if len(steps) < 2:
        return Markup()
    middle, end = steps[len(steps) // 2] - steps[0], steps[-1] - steps[0]
    places = {step: math.log1p(step) if 10 * middle < end else step for step in steps}
    across, low, high = places[steps[-1]] - places[steps[0]], min(values.values()), max(values.values())

    def corner(step: int) -> tuple[str, str]:
        x = (places[step] - places[steps[0]]) / across
        y = 1 - (values[step] - low) / ((high - low) or 1.0)
        return f"{1 + (width - 2) * x:.1f}", f"{1 + (height - 2) * y:.1f}"

    line = Markup('<polyline points="{}"/>').format(" ".join(",".join(corner(step)) for step in steps))
    if series.best is None or series.best.step not in values:
        return line
    return line + Markup('<circle cx="{}" cy="{}" r="2"/>').format(*corner(series.best.step))


FILTERS: Mapping[str, Callable[..., str]] = {
    "number": number,
    "error": error,
    "signed": signed,
    "bytes": bytes_,
    "duration": duration,
    "segment": segment,
    "sparkline": sparkline,
}
"""Functions that templates call, by name."""
