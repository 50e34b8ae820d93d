"""Charts as Vega-Lite specs. A browser draws a spec, and `vega.svg` and `vega.png` render the same spec.

Colours are those of Okabe and Ito, which people with colour blindness tell apart; dash patterns tell lines apart in
print. Texts and axes have no colours here: `vega.DARK` and `vega.LIGHT` give those of the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import Literal, TypeVar

from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.spec.documents.history import Axis
from evalsvc.web.curve_rows import Rows, gap_rows, line_rows, point_rows
from evalsvc.web.curves import Curve, Line, Missing

Spec = dict[str, object]
"""A Vega-Lite spec, as JSON."""

Scale = Literal["linear", "log"]

T = TypeVar("T")

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
"""Colours of runs, in their order. Yellow is darker than Okabe and Ito's, which is faint on white."""

DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [12, 3], [4, 4], [1, 3], [10, 2, 2, 2, 2, 2])

HEIGHT = 220

AXIS_TITLES: Mapping[Axis, str] = {"step": "training step", "tokens": "training tokens"}

VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00"}
VERDICT_SHAPES = {"better": "triangle-up", "worse": "triangle-down"}
OTHER_COLOUR = "#7f7f7f"


def curve_chart(
    curves: Sequence[Curve],
    missing: Sequence[Missing] = (),
    lines: Sequence[Line] = (),
    *,
    axis: Axis = "step",
    scale: Scale = "linear",
    smooth: bool = False,
) -> Spec:
    """Return the chart of one metric of several runs, with intervals.

    The chart has two parameters: `zoom`, the selection that scales follow, and `at`, a place to mark or null. On a
    logarithmic scale values up to zero are left out. Gaps have steps, and so no place along tokens.
    """
    labels = list(dict.fromkeys(curve.label for curve in curves))
    floor = 0.0 if scale == "log" else -inf
    datasets = {
        "points": point_rows(curves, floor),
        "lines": line_rows(lines, floor),
        "gaps": gap_rows(missing) if axis == "step" else [],
    }
    return _spec(_description(curves, axis), []) | {
        "datasets": datasets,
        "params": [{"name": "at", "value": None}],
        "layer": list(_curve_layers(curves, labels, axis, scale, smooth)),
    }


def _curve_layers(
    curves: Sequence[Curve], labels: Sequence[str], axis: Axis, scale: Scale, smooth: bool
) -> Iterator[Spec]:
    x = _x_of(axis)
    title = next((curve.unit for curve in curves if curve.unit), None)
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "nice": False, "padding": 12} if scale == "log" else {"zero": False},
        "axis": {"labelExpr": SHORT, "tickCount": 6, "labelOverlap": True},
    }
    place: Spec = {"x": x, "y": y, "color": _by_run(labels, COLOURS), "detail": {"field": "series"}}
    path: Spec = place | {"strokeDash": _by_run(labels, DASHES)}
    yield _band("range", "least", "most", 0.12, place)
    yield _band("interval", "low", "high", 0.22, place)
    yield _bars(place)
    yield from _lines(y)
    yield {
        "name": "curves",
        "mark": {"type": "line", "strokeWidth": 1 if smooth else 2, "opacity": 0.3 if smooth else 1, "clip": True},
        "encoding": path,
        "params": [{"name": "zoom", "select": ZOOM, "bind": "scales"}],
    }
    if smooth:
        yield {
            "transform": [{"filter": "isValid(datum.smooth)"}],
            "mark": {"type": "line", "strokeWidth": 2.5, "clip": True},
            "encoding": path | {"y": y | {"field": "smooth"}},
        }
    yield {
        "transform": [{"filter": "isValid(datum.y)"}],
        "mark": {
            "type": "point",
            "filled": True,
            "clip": True,
            "tooltip": {"expr": _tooltip(axis)},
        },
        "encoding": place | {"shape": SHAPE, "size": SIZE, "opacity": FAINT if smooth else {"value": 1}},
    }
    yield {  # values that are no number stand at the lower edge, so that nobody takes them for a gap
        "transform": [{"filter": "isValid(datum.word)"}],
        "mark": {"type": "text", "fontSize": 10, "dy": -6, "clip": True, "tooltip": {"expr": _tooltip(axis)}},
        "encoding": {"x": x, "y": {"value": HEIGHT}, "text": {"field": "word"}, "color": _by_run(labels, COLOURS)},
    }
    yield {
        "data": {"name": "gaps"},
        "mark": {
            "type": "point",
            "shape": CROSS,
            "filled": True,
            "size": 90,
            "opacity": 1,
            "yOffset": -8,
            "clip": True,
            "color": OTHER_COLOUR,
            "tooltip": {"expr": GAP_TOOLTIP},
        },
        "encoding": {"x": x, "y": {"value": HEIGHT}},
    }
    yield _cursor(x)


SHORT = "format(datum.value, abs(datum.value) >= 1e4 ? '~s' : datum.value && abs(datum.value) < 1e-3 ? '~e' : '~g')"
"""Label of an axis: 4000 as it is, 40000 as 40k, and 0.0004 as 4e-4."""

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
    """Return the expression of a tooltip: only what a point has."""
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


def _x_of(axis: Axis) -> Spec:
    # A billion is B for tokens, and not the G of physical units.
    label = f"replace({SHORT}, 'G', 'B')" if axis == "tokens" else SHORT
    return {
        "field": "x",
        "type": "quantitative",
        "title": AXIS_TITLES[axis],
        "scale": {"zero": False, "nice": False, "padding": 6},
        "axis": {"labelExpr": label, "tickCount": {"expr": "max(2, floor(width / 80))"}, "labelFlush": True},
    }


def _by_run(labels: Sequence[str], choices: Sequence[T]) -> Spec:
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


def _bars(place: Spec) -> Spec:
    """Return the intervals of single points, for curves of few: a band needs neighbours."""
    y = place["y"]
    assert isinstance(y, dict)
    return {
        "transform": [{"filter": "isValid(datum.low) && !isValid(datum.crowd)"}],
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.5, "clip": True},
        "encoding": {**place, "y": y | {"field": "low"}, "y2": {"field": "high"}},
    }


def _band(name: str, low: str, high: str, opacity: float, place: Spec) -> Spec:
    y = place["y"]
    assert isinstance(y, dict)
    return {
        "name": name,
        "mark": {"type": "area", "opacity": opacity, "clip": True},
        "encoding": place | {"y": y | {"field": low}, "y2": {"field": high}},
    }


def _lines(y: Spec) -> Iterator[Spec]:
    """Yield lines across the chart, each with its text above its right end, or below where there is no room."""
    data: Spec = {"data": {"name": "lines"}}
    yield data | {
        "mark": {"type": "rule", "strokeDash": [4, 3], "color": OTHER_COLOUR, "clip": True},
        "encoding": {"y": y},
    }
    yield data | {
        "mark": {"type": "text", "align": "right", "dx": -3, "dy": {"expr": ABOVE}, "fontSize": 11, "clip": True},
        "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "text"}},
    }


def _cursor(x: Spec) -> Spec:
    """Return the line at the place that the parameter `at` names."""
    return {
        "data": {"values": [{}]},
        "transform": [{"calculate": "at", "as": "x"}, {"filter": "isValid(datum.x)"}],
        "mark": {"type": "rule", "strokeDash": [2, 2], "clip": True},
        "encoding": {"x": x},
    }


def _description(curves: Sequence[Curve], axis: Axis) -> str:
    """Return the text that a screen reader reads for the chart."""
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return "no values"
    runs = ", ".join(dict.fromkeys(curve.label for curve in drawn))
    newest = "; ".join(
        f"{curve.label} has {len(curve.points):,} points and ends at {curve.points[-1].value} ({axis} "
        f"{curve.points[-1].x:,})"
        for curve in drawn
    )
    return f"{drawn[0].metric} of {runs} along {AXIS_TITLES[axis]}, in {drawn[0].unit or 'no unit'}. {newest}"


def difference_chart(curve: DifferenceCurve) -> Spec:
    """Return the chart of the difference between two runs, with intervals and a line at zero."""
    columns = ("low", "high", "verdict", "basis", "n")
    rows = [
        {"x": x, "y": y if isinstance(y, float) else None} | {name: getattr(curve, name)[i] for name in columns}
        for i, (x, y) in enumerate(zip(curve.x, curve.difference, strict=True))
    ]
    x = _x_of("step")
    y: Spec = {"field": "y", "type": "quantitative", "title": f"b − a, {curve.unit}"}
    return _spec(f"difference in {curve.metric} along training, with its interval at each step", rows) | {
        "params": [{"name": "at", "value": None}],
        "layer": [
            {
                "transform": [{"filter": "isNumber(datum.low) && isNumber(datum.high)"}],
                "mark": {"type": "area", "opacity": 0.22, "color": COLOURS[0], "clip": True},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": COLOURS[0], "clip": True},
                "encoding": {"x": x, "y": y},
                "params": [{"name": "zoom", "select": ZOOM, "bind": "scales"}],
            },
            {
                "transform": [{"filter": "isValid(datum.y)"}],
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1, "clip": True},
                "encoding": _by_verdict(curve.verdict)
                | {"x": x, "y": y, "tooltip": [{"field": name} for name in ("x", "y", *columns)]},
            },
            {
                "data": {"values": [{"y": 0}]},
                "mark": {"type": "rule", "color": OTHER_COLOUR},
                "encoding": {"y": y},
            },
            _cursor(x),
        ],
    }


def contrast_chart(rows: Sequence[MetricDifference]) -> Spec:
    """Return the chart of the differences between two checkpoints, a line per metric, in standard errors.

    Metrics have different units. Divided by its standard error each difference has the same unit, and better is always
    to the right: the sign is turned for metrics of which lower is better.
    """
    values: Rows = []
    for row in rows:
        if isinstance(row.difference, float) and isinstance(row.stderr, float) and row.stderr > 0:
            z = (-1 if row.direction == "lower" else 1) * row.difference / row.stderr
            text = f"{row.difference:.4g} ± {row.stderr:.2g} {row.unit}"
            if isfinite(z):
                values.append({"metric": row.metric, "z": z, "verdict": row.verdict, "difference": text})
    y: Spec = {"field": "metric", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 220}}
    x: Spec = {"field": "z", "type": "quantitative", "title": "difference in standard errors, better →"}
    colour = _by_verdict([str(row["verdict"]) for row in values])["color"]
    return _spec("differences between two checkpoints in standard errors, better to the right", values) | {
        "height": 18 * max(1, len(values)),
        "layer": [
            {"mark": {"type": "rule", "color": OTHER_COLOUR}, "encoding": {"x": {"datum": 0}}},
            {
                "mark": {"type": "bar", "height": 8},
                "encoding": {
                    "y": y,
                    "x": x,
                    "color": colour,
                    "tooltip": [{"field": name} for name in ("metric", "difference", "verdict")],
                },
            },
        ],
    }


def _spec(description: str, points: Rows) -> Spec:
    """Return what all charts have: a width that follows the page, and the data `points`."""
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "description": description,
        "datasets": {"points": points},
        "data": {"name": "points"},
    }


def _by_verdict(verdicts: Sequence[str]) -> Spec:
    """Return the encodings that tell verdicts apart, by colour and by shape."""
    names = list(dict.fromkeys(verdicts))
    field: Spec = {"field": "verdict", "type": "nominal", "title": None, "legend": {"orient": "top"}}
    colours = [VERDICT_COLOURS.get(name, OTHER_COLOUR) for name in names]
    shapes = [VERDICT_SHAPES.get(name, "circle") for name in names]
    return {
        "color": field | {"scale": {"domain": names, "range": colours}},
        "shape": field | {"scale": {"domain": names, "range": shapes}},
    }


def _repeated(choices: Sequence[T], number: int) -> list[T]:
    return [choices[i % len(choices)] for i in range(number)]
