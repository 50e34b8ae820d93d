"""Numbers, times and names as pages show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote


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


def sparkline(values: Sequence[object], width: int = 96, height: int = 22) -> str:
    """Return the points of a line through the finite values, for the attribute `points` of an SVG polyline."""
    finite = [(i, value) for i, value in enumerate(values) if isinstance(value, float)]
    if len(finite) < 2:
        return ""
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    across, up = max(1, len(values) - 1), (high - low) or 1.0
    return " ".join(
        f"{1 + (width - 2) * i / across:.1f},{1 + (height - 2) * (1 - (value - low) / up):.1f}" for i, value in finite
    )


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
