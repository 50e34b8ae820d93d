"""Parts of charts: colours, axes, legends, marks and tooltips.

Colours are those of Okabe and Ito, which people with colour blindness tell apart; dash patterns tell lines apart in
print. Texts and axes have no colours here: `vega.config` gives those of the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from evalsvc.spec.documents.history import Axis

Spec = dict[str, object]
"""A Vega-Lite spec, as JSON."""

Scale = Literal["linear", "log"]

T = TypeVar("T")

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
"""Colours of runs, in their order. Yellow is darker than Okabe and Ito's, which is faint on white."""

DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [12, 3], [4, 4], [1, 3], [10, 2, 2, 2, 2, 2])

HEIGHT = 220

AXIS_TITLES: Mapping[Axis, str] = {"step": "training step", "tokens": "training tokens"}

UNREAD: Spec = {"aria": False}
"""Mark that a screen reader passes over: it has no text of its own, and the table has its numbers."""

OTHER_COLOUR = "#7f7f7f"

SHORT = "format(datum.value, abs(datum.value) >= 1e4 ? '~s' : datum.value && abs(datum.value) < 1e-3 ? '~e' : '~g')"
"""Label of an axis: 4000 as it is, 40000 as 40k, and 0.0004 as 4e-4."""

POWERS = [0, *(10**power for power in range(16))]
"""Ticks of a logarithmic axis."""

ZOOM: Spec = {
    "type": "interval",
    "zoom": "wheel![event.ctrlKey || event.metaKey || event.shiftKey]",
    "translate": "[pointerdown[event.pointerType == 'mouse'], window:pointerup] > window:pointermove!",
}
"""A wheel without a key scrolls the page, and so does a finger."""

SHAPE: Spec = {
    "field": "kind",
    "type": "nominal",
    "scale": {"domain": ["imported", "virtual"], "range": ["square", "triangle-up"], "unknown": "circle"},
    "legend": None,
}

ABOVE = "scale('y', datum.y) < 14 ? 9 : -6"

SIZE: Spec = {
    "condition": [{"test": "datum.crowd == 1", "value": 16}, {"test": "datum.crowd == 2", "value": 5}],
    "value": 36,
}

FAINT: Spec = {
    "condition": [{"test": "datum.crowd == 1", "value": 0.5}, {"test": "datum.crowd == 2", "value": 0.3}],
    "value": 0.85,
}
"""Opacity of points over an average, so that neither hides the other."""

CROSS = "M-1,-.7L-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0Z"

GAP_TOOLTIP = "{'step': format(datum.x, ','), 'run': datum.run, 'no value': datum.why, 'reason': datum.message}"


def _tooltip(axis: Axis) -> str:
    parts = (
        f"{{'run': datum.run, '{axis}': format(datum.x, ',')}}",
        "{'value': isValid(datum.word) ? datum.word : format(datum.y, '.6~g')}",
        "isValid(datum.stderr) ? {'± stderr': format(datum.stderr, '.2~g')} : {}",
        "isValid(datum.low) ? {'95 %': format(datum.low, '.5~g') + ' to ' + format(datum.high, '.5~g')} : {}",
        "isValid(datum.n) ? {'n': format(datum.n, ',')} : {}",
        "isValid(datum.next) ? {'also': datum.next} : {}",
        "isValid(datum.count) ? {'last of': format(datum.count, ',') + ' values'} : {}",
        "isValid(datum.least) ? {'others': format(datum.least, '.5~g') + ' to ' + format(datum.most, '.5~g')} : {}",
        "isValid(datum.kind) ? {'origin': datum.kind} : {}",
    )
    return f"merge({', '.join(parts)})"


def x_of(axis: Axis, scale: Scale = "linear") -> Spec:
    """Return the encoding of steps or tokens. A logarithmic axis is linear up to 1, since many runs begin at 0."""
    # A billion is B for tokens, and not the G of physical units.
    ticks: Spec = {"values": POWERS} if scale == "log" else {"tickCount": {"expr": "max(2, floor(width / 80))"}}
    label = f"replace({SHORT}, 'G', 'B')" if axis == "tokens" else SHORT
    return {
        "field": "x",
        "type": "quantitative",
        "title": AXIS_TITLES[axis],
        "scale": {"type": "symlog" if scale == "log" else "linear", "zero": False, "nice": False, "padding": 6},
        "axis": {"labelExpr": label, "labelFlush": True, "labelOverlap": True} | ticks,
    }


def y_of(scale: Scale, title: str | None) -> Spec:
    """Return the encoding of values."""
    return {
        "field": "y",
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "nice": False, "padding": 12} if scale == "log" else {"zero": False},
        "axis": {"labelExpr": SHORT, "tickCount": 6, "labelOverlap": True},
    }


def by_run(labels: Sequence[str], choices: Sequence[T]) -> Spec:
    """Return the encoding that tells runs apart, with one legend for colours and dashes."""
    legend: Spec = {
        "orient": "top",
        "title": None,
        "symbolType": "stroke",
        "symbolOpacity": 1,
        "symbolStrokeWidth": 2.5,
        "symbolSize": 260,
        "columns": 2,
        "labelLimit": {"expr": "max(80, width / 2 - 40)"},
    }
    return {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(labels), "range": _repeated(choices, len(labels))},
        "legend": legend if len(labels) > 1 else None,
    }


def bars(place: Spec) -> Spec:
    """Return the intervals of single points, for curves of few: a band needs neighbours."""
    y = place["y"]
    assert isinstance(y, dict)
    return {
        "transform": [{"filter": "isValid(datum.low) && !isValid(datum.crowd)"}],
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.5, "clip": True, **UNREAD},
        "encoding": {**place, "y": y | {"field": "low"}, "y2": {"field": "high"}},
    }


def band(name: str, low: str, high: str, opacity: float, place: Spec) -> Spec:
    """Return an area between two fields."""
    y = place["y"]
    assert isinstance(y, dict)
    return {
        "name": name,
        "mark": {"type": "area", "opacity": opacity, "clip": True, **UNREAD},
        "encoding": place | {"y": y | {"field": low}, "y2": {"field": high}},
    }


def level_lines(y: Spec) -> Iterator[Spec]:
    """Yield lines across the chart, each with its text above its right end, or below where there is no room."""
    data: Spec = {"data": {"name": "lines"}}
    yield data | {
        "mark": {"type": "rule", "strokeDash": [4, 3], "color": OTHER_COLOUR, "clip": True, **UNREAD},
        "encoding": {"y": y},
    }
    yield data | {
        "mark": {"type": "text", "align": "right", "dx": -3, "dy": {"expr": ABOVE}, "fontSize": 11, "clip": True},
        "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "text"}},
    }


def point_marks(place: Spec, axis: Axis, smooth: bool) -> Spec:
    """Return the points of all curves."""
    return {
        "transform": [{"filter": "isValid(datum.y)"}],
        "mark": {"type": "point", "filled": True, "clip": True, "tooltip": {"expr": _tooltip(axis)}},
        "encoding": place | {"shape": SHAPE, "size": SIZE, "opacity": FAINT if smooth else {"value": 1}},
    }


def word_marks(place: Spec, axis: Axis) -> Spec:
    """Return the values that are no number, at the lower edge, so that nobody takes them for gaps."""
    return {
        "transform": [{"filter": "isValid(datum.word)"}],
        "mark": {"type": "text", "fontSize": 10, "dy": -6, "clip": True, "tooltip": {"expr": _tooltip(axis)}},
        "encoding": place | {"y": {"value": HEIGHT}, "text": {"field": "word"}},
    }


def gap_marks(x: Spec) -> Spec:
    """Return the gaps of all curves, at the lower edge."""
    mark: Spec = {"type": "point", "shape": CROSS, "filled": True, "size": 90, "opacity": 1, "yOffset": -8}
    return {
        "data": {"name": "gaps"},
        "mark": mark | {"clip": True, "color": OTHER_COLOUR, "tooltip": {"expr": GAP_TOOLTIP}} | UNREAD,
        "encoding": {"x": x, "y": {"value": HEIGHT}},
    }


def cursor(x: Spec) -> Spec:
    """Return the line at the place that the parameter `at` names."""
    return {
        "data": {"values": [{}]},
        "transform": [{"calculate": "at", "as": "x"}, {"filter": "isValid(datum.x)"}],
        "mark": {"type": "rule", "strokeDash": [2, 2], "clip": True, **UNREAD},
        "encoding": {"x": x},
    }


def _repeated(choices: Sequence[T], number: int) -> list[T]:
    return [choices[i % len(choices)] for i in range(number)]
