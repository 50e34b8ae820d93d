"""Rows of a curve chart's data. A row has only the fields that have a value, since a chart may have thousands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evalsvc.metrics.shown_metrics import yardsticks
from evalsvc.spec.documents.fields import Number
from evalsvc.web.curves import Curve, Line, Missing, Point

Rows = list[dict[str, object]]

LONGEST = 160
"""Characters of a reason in a tooltip."""


FEW, MANY = 60, 200
"""Points of a curve that have large marks, and points that have smaller ones."""


def point_rows(curves: Sequence[Curve], floor: float) -> Rows:
    """Return a row per point. Values up to `floor` have no place on the chart's scale, and so no `y`.

    `word` has a value that is no number, and `shown` one that has no place. `crowd` is 1 where points are many, and 2
    where they are very many: large marks would hide one another.
    """
    longest = max((len(curve.points) for curve in curves), default=0)
    crowd = None if longest <= FEW else 1 if longest <= MANY else 2
    return [_drop_empty(row | {"crowd": crowd}) for curve in curves for row in _rows(curve, floor)]


def _rows(curve: Curve, floor: float) -> Iterator[dict[str, object]]:
    series = f"{curve.label} {curve.protocol}"
    for point in curve.points:
        y = _above(floor, point.value)
        low, least = _above(floor, point.low), _above(floor, point.least)
        yield {
            "run": curve.label,
            "series": series,
            "x": point.x,
            "y": y,
            "low": low,
            "high": None if low is None else point.high,
            "least": least,
            "most": None if least is None else point.most,
            "smooth": _above(floor, point.smooth),
            "word": None if isinstance(point.value, float) else point.value,
            "shown": point.value if y is None and isinstance(point.value, float) else None,
            "stderr": point.stderr,
            "n": point.n,
            "count": point.count if point.count > 1 else None,
            "kind": point.kind if point.kind != "measured" else None,
            "next": _next_to(point),
        }


def _next_to(point: Point) -> str | None:
    """Return the companions of a value as `perplexity 10.1; unigram 6.2`."""
    return yardsticks(list(point.companions.items()), None) if point.companions else None


def _above(floor: float, value: Number | None) -> float | None:
    return value if isinstance(value, float) and value > floor else None


def _drop_empty(row: dict[str, object]) -> dict[str, object]:
    """Leave out empty fields but `y`: a line breaks where `y` is null."""
    return {name: value for name, value in row.items() if name == "y" or value not in (None, "")}


def line_rows(lines: Sequence[Line], floor: float) -> Rows:
    """Return a row per line, each value and text once."""
    return [{"y": line.value, "text": line.text} for line in dict.fromkeys(lines) if line.value > floor]


def gap_rows(missing: Sequence[Missing]) -> Rows:
    """Return a row per gap, with its reason."""
    return [
        {"x": each.gap.step, "run": each.label, "why": each.gap.why, "message": _cut(each.gap.message)}
        for each in missing
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
