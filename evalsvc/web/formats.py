"""Numbers, times and names as pages show them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import quote

from evalsvc.errors import meaning
from evalsvc.spec.documents.history import HeadlineSeries

VERDICTS: Mapping[str, tuple[str, str]] = {
    "better": ("▲", "better"),
    "worse": ("▼", "worse"),
    "different": ("◆", "different"),
    "indistinguishable": ("≈", "within noise"),
    "other_protocol": ("", "other protocol"),
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
    "sentence": sentence,
    "quote": shlex.quote,
    "is_digest": re.compile("[0-9a-f]{32,64}").fullmatch,
    "parts": partial(re.split, r"(?<=[/_@.:])"),
    "cure": meaning,
    "verdict": lambda name: VERDICTS.get(name, ("", "no error known")),
    "signed": signed,
    "bytes": bytes_,
    "duration": duration,
    "segment": segment,
    "sparkline": sparkline,
}
