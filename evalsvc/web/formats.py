"""Numbers, times and names as pages show them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from urllib.parse import quote

from evalsvc.errors import meaning
from evalsvc.metrics.definitions import title_of
from evalsvc.metrics.intervals import percent
from evalsvc.spec.documents.history import HeadlineSeries

VERDICTS: Mapping[str, tuple[str, str]] = {
    "better": ("▲", "better"),
    "worse": ("▼", "worse"),
    "different": ("◆", "different"),
    "indistinguishable": ("≈", "within noise"),
    "other_protocol": ("", "other protocol"),
    "too few": ("", "too few items to tell"),
    "only_a": ("", "only in A"),
    "only_b": ("", "only in B"),
}
"""Sign and words of verdicts."""


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: object, stderr: object = None) -> str:
    """Return a number to the second digit of its standard error, or with five significant digits if the error is
    unknown; any other value as text."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
    if isinstance(value, float) and math.isfinite(value) and isinstance(stderr, float) and 1e-6 <= stderr < 1e6:
        places = 1 - int(f"{stderr:.1e}".partition("e")[2])
        shown = f"{round(value, places) + 0.0:,.{max(places, 0)}f}"
    digits, _, power = shown.partition("e") if isinstance(value, float) and math.isfinite(value) else (shown, "", "")
    raised = f" × 10{str(int(power)).translate(RAISED)}" if power else ""
    return digits.replace("-", "−") + raised


def signed(difference: object, stderr: object = None) -> str:
    """Return a difference with its sign, to the second digit of its standard error, or with three significant digits; a
    dash if the difference is unknown."""
    if not isinstance(difference, float):
        return "–"
    shown = number(difference, stderr) if isinstance(stderr, float) else number(float(f"{difference:.3g}"))
    return shown if shown.startswith("−") else f"+{shown}"


def error(stderr: object) -> str:
    """Return a standard error as ±, with two significant digits; empty if the error is unknown."""
    return f"± {number(float(f'{stderr:.2g}'), stderr)}" if isinstance(stderr, float) else ""


def sentence(text: str) -> str:
    """Return a message with a capital, unless it seems to begin with a name, and with a stop, unless it ends with a
    command or an address."""
    if re.match("[a-z]+[,;]? (?!is |has |was |had |cannot )", text := text.strip()):
        text = text[0].upper() + text[1:]
    is_whole = text[-1:] in ".!?:" or re.match(r"(evalsvc|pip|docker) |\S*[/=]\S*$", text.rpartition(": ")[2])
    return text if is_whole else f"{text}."


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


def sparkline(series: HeadlineSeries, **size: int) -> tuple[str, tuple[str, str] | None, str | None] | None:
    """Return the points of a line through the finite values of a series, the place of the best one, and the height of
    the value of chance, if that is near, for an SVG. None with fewer than two values."""
    best, chance = series.best, series.baseline if isinstance(series.baseline, float) else math.nan
    values = {step: value for step, value in zip(series.x, series.values, strict=True) if isinstance(value, float)}
    values |= {best.step: best.value} if best is not None and isinstance(best.value, float) else {}
    if len(values) < 2:
        return None
    low, high = min(values.values()), max(values.values())
    level = {min(values): chance} if 2 * low - high <= chance <= 2 * high - low else {}
    line, at_chance = _placed([values, level], **size)
    y = next((y for _, y in at_chance.values()), None)
    return " ".join(map(",".join, line.values())), None if best is None else line.get(best.step), y


def band(curve: Mapping[int, tuple[float, float]]) -> tuple[str, str] | None:
    """Return the points of a line through means, and of the area within a standard deviation of them, for an SVG."""
    if len(curve) < 2:
        return None
    means, *edges = ({step: mean + sign * sd for step, (mean, sd) in curve.items()} for sign in (0, 1, -1))
    line, upper, lower = ([*places.values()] for places in _placed([means, *edges]))
    return " ".join(map(",".join, line)), " ".join(map(",".join, upper + lower[::-1]))


def _placed(
    curves: Sequence[Mapping[int, float]], width: int = 96, height: int = 22
) -> list[dict[int, tuple[str, str]]]:
    """Place values by step, or by log(1 + step) where half of the first curve's steps are in a tenth of the range."""
    steps = sorted(curves[0])
    far = 10 * (steps[len(steps) // 2] - steps[0]) < steps[-1] - steps[0]
    place = {step: math.log1p(step) if far else step for step in steps}
    values = [value for curve in curves for value in curve.values()]
    low, first, across = min(values), place[steps[0]], (width - 2) / (place[steps[-1]] - place[steps[0]])
    up = (height - 2) / (max(values) - low or 1)
    at = {step: f"{1 + across * (place[step] - first):.1f}" for step in steps}
    return [{x: (at[x], f"{height - 1 - up * (curve[x] - low):.1f}") for x in sorted(curve)} for curve in curves]


FILTERS: Mapping[str, Callable[..., object]] = {
    "number": number,
    "error": error,
    "sentence": sentence,
    "quote": shlex.quote,
    "is_digest": re.compile("[0-9a-f]{32,64}").fullmatch,
    "parts": partial(re.split, r"(?<=[/_@.:])"),
    "cure": meaning,
    "words": title_of,
    "percent": percent,
    "verdict": lambda name: VERDICTS.get(name, ("", "no error known")),
    "signed": signed,
    "bytes": bytes_,
    "duration": duration,
    "segment": segment,
    "sparkline": sparkline,
    "band": band,
}
