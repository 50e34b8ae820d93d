"""Charts as Vega-Lite specs. A browser draws a spec, and `vega.render` renders the same spec.

Dash patterns tell lines apart in print, and for people with colour blindness. Green and orange, those of Okabe and Ito,
mean better and worse. Texts and axes have no colours here: `vega.config` gives those of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import cycle, islice
from math import inf, isfinite
from typing import Literal

from evalsvc.metrics.shown_metrics import yardsticks
from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import Axis
from evalsvc.web.curves import Curve, Line, Missing

Spec = dict[str, object]

Rows = list[dict[str, object]]
Scale = Literal["linear", "log"]
Along = Literal["auto", "linear", "log"]
"""Scale of an axis; `auto` is logarithmic if the second-largest place is below a fifth of the largest."""

COLOURS = ("#0072b2", "#b0479a", "#0d98ba", "#8f8000", "#6f4fd8", "#e0457f", "#8c6d62", "#b16be0", "#5d7488")
"""Colours of runs: none is the green or the orange of a verdict, and each has a contrast of 3 on white and on dark."""

OTHER_COLOUR = "#7f7f7f"
DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [12, 3], [4, 4], [1, 3], [10, 2, 2, 2, 2, 2])
VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00", "different": "#6f4fd8"}
VERDICT_SHAPES = {"better": "triangle-up", "worse": "triangle-down", "different": "diamond"}

HEIGHT, MAP_SIDE = 220, 256
"""Height of a chart in pixels, and about how many the longer side of a map has."""

NO_LOSS = "#becde1"
"""Colour of image codes without a target, which the scale does not have."""

LONGEST = 160

FEW, MANY = 60, 200
"""Points of a curve that have large marks, and points that have smaller ones."""

AXIS_TITLES: Mapping[Axis, str] = {"step": "training step", "tokens": "training tokens"}

POWERS = [0, *(10**power for power in range(16))]

STANDARD_ERRORS = [sign * size for sign in (-1, 1) for size in (2, 10, 100, 1000, 10_000, 100_000)] + [0]
"""Labels of an axis that is linear near zero and logarithmic beyond."""

SHORT = "format(datum.value, abs(datum.value) >= 1e4 ? '~s' : datum.value && abs(datum.value) < 1e-3 ? '~e' : '~g')"
"""Label of an axis: 4000 as it is, 40000 as 40k, and 0.0004 as 4e-4."""

UNREAD: Spec = {"aria": False}
"""Mark that a screen reader passes over: it has no text of its own, and the table has its numbers."""

ZOOM: Spec = {
    "type": "interval",
    "zoom": "wheel![event.ctrlKey || event.metaKey || event.shiftKey]",
    "translate": "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
}
"""A wheel without a key scrolls the page, and so does a finger. Dragging without a key is for the page's box."""

KINDS: Spec = {"domain": ["imported", "virtual"], "range": ["square", "triangle-up"], "unknown": "circle"}
SHAPE: Spec = {"field": "kind", "type": "nominal", "scale": KINDS, "legend": None}

MANY_POINTS, MORE_POINTS = "datum.crowd == 1", "datum.crowd == 2"
SIZE: Spec = {"condition": [{"test": MANY_POINTS, "value": 16}, {"test": MORE_POINTS, "value": 5}], "value": 36}
FAINT: Spec = {"condition": [{"test": MANY_POINTS, "value": 0.5}, {"test": MORE_POINTS, "value": 0.3}], "value": 0.85}
"""Opacity of points over an average, so that neither hides the other."""

ABOVE = "scale('y', datum.y) < 14 ? 9 : -6"
CROSS = "M-1,-.7L-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0Z"
GAP_TOOLTIP = "{'step': format(datum.x, ','), 'run': datum.run, 'no value': datum.why, 'reason': datum.message}"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """Return the colour of each run, or of each variant of a run. Its name decides, so that a run has one colour on all
    pages; of two with the same colour, the later one has the next colour that is free. Runs come before variants."""
    colours: dict[str, str] = {}
    for label in sorted(dict.fromkeys(labels), key=lambda label: ":" in label):
        start = int.from_bytes(sha256(label.encode()).digest()[:4]) % len(COLOURS)
        order = COLOURS[start:] + COLOURS[:start]
        colours[label] = next((colour for colour in order if colour not in colours.values()), order[0])
    return {label: colours[label] for label in labels}


def curve_chart(
    curves: Sequence[Curve],
    missing: Sequence[Missing] = (),
    lines: Sequence[Line] = (),
    *,
    axis: Axis = "step",
    scale: Scale = "linear",
    along: Along = "linear",
    smooth: bool = False,
) -> Spec:
    """Return the chart of one metric of several runs, with intervals; `scale` is of the values, `along` of the axis.
    The chart has two parameters: `zoom`, the selection that scales follow, and `at`, a place to mark or null. On a
    logarithmic scale values up to zero are left out. Gaps have steps, and so no place along tokens."""
    labels = list(dict.fromkeys(curve.label for curve in curves))
    floor = 0.0 if scale == "log" else -inf
    places = [x for curve in curves for x in curve.series.x]
    datasets = {
        "points": _points(curves, floor),
        "lines": [{"y": line.value, "text": line.text} for line in dict.fromkeys(lines) if line.value > floor],
        "gaps": [
            {"x": item.gap.step, "run": item.label, "why": item.gap.why, "message": _cut(item.gap.message)}
            for item in (missing if axis == "step" else ())
        ],
    }
    return _spec(_description(curves, axis), []) | {
        "datasets": datasets,
        "params": [{"name": "at", "value": None}],
        "layer": _curve_layers(curves, labels, _x_of(axis, scale_along(along, places)), axis, scale, smooth),
    }


def scale_along(along: Along, places: Iterable[int]) -> Scale:
    """Return the scale of an axis with values at these places."""
    ordered = sorted({0, *places})
    is_far = len(ordered) > 2 and 5 * ordered[-2] < ordered[-1]
    return ("log" if is_far else "linear") if along == "auto" else along


def _points(curves: Sequence[Curve], floor: float) -> Rows:
    """Return a row per point. Values up to `floor` have no place on the chart's scale, and so no `y`. A row has only
    the fields that have a value, since a chart may have thousands of rows; but a line breaks where `y` is null. `word`
    has a value that is no number, and `shown` one that has no place. `crowd` is 1 where points are many, and 2 where
    they are very many: large marks would hide one another."""
    longest = max((len(curve.series.x) for curve in curves), default=0)
    crowd = None if longest <= FEW else 1 if longest <= MANY else 2
    rows: Rows = []
    for curve in curves:
        series = curve.series
        for at, (x, value) in enumerate(zip(series.x, series.last, strict=True)):
            is_number, several, origin = isinstance(value, float), series.count[at] > 1, curve.origin(at)
            y, low = _above(floor, value), _above(floor, series.low[at])
            least = _above(floor, series.min[at]) if several else None
            row = {
                "run": curve.label,
                "series": f"{curve.label} {series.protocol}",
                "x": x,
                "y": y,
                "low": low,
                "high": None if low is None else series.high[at],
                "least": least,
                "most": None if least is None else series.max[at],
                "smooth": _above(floor, curve.smooth[at]) if curve.smooth else None,
                "word": None if is_number else value,
                "shown": value if y is None and is_number else None,
                "stderr": series.stderr[at],
                "n": series.n[at],
                "count": series.count[at] if several else None,
                "kind": origin if origin != "measured" else None,
                "next": yardsticks(list(curve.companions_at(x).items()), None) if curve.companions else None,
                "crowd": crowd,
            }
            rows.append({name: field for name, field in row.items() if name == "y" or field not in (None, "")})
    return rows


def _above(floor: float, value: Number | None) -> float | None:
    return value if isinstance(value, float) and value > floor else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _curve_layers(
    curves: Sequence[Curve], labels: Sequence[str], x: Spec, axis: Axis, scale: Scale, smooth: bool
) -> list[Spec]:
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": next((curve.series.unit for curve in curves if curve.series.unit), None),
        "scale": {"type": "log", "nice": False, "padding": 12} if scale == "log" else {"zero": False},
        "axis": {"labelExpr": SHORT, "tickCount": 6, "labelOverlap": True},
    }
    place: Spec = {
        "x": x,
        "y": y,
        "color": _by_run(labels, list(colours_of(labels).values())),
        "detail": {"field": "series"},
    }
    path: Spec = place | {"strokeDash": _by_run(labels, DASHES)}
    band: Spec = {"type": "area", "opacity": 0.12, "clip": True} | UNREAD
    level: Spec = {"type": "rule", "strokeDash": [4, 3], "color": OTHER_COLOUR, "clip": True} | UNREAD
    text: Spec = {"type": "text", "align": "right", "dx": -3, "dy": {"expr": ABOVE}, "fontSize": 11, "clip": True}
    cross: Spec = {"type": "point", "shape": CROSS, "filled": True, "size": 90, "opacity": 1, "yOffset": -8}
    tooltip: Spec = {"clip": True, "tooltip": {"expr": _tooltip(axis)}}

    def between(low: str, high: str) -> Spec:
        return {"encoding": place | {"y": y | {"field": low}, "y2": {"field": high}}}

    average: Spec = {
        "transform": [{"filter": "isValid(datum.smooth)"}],
        "mark": {"type": "line", "strokeWidth": 2.5, "clip": True},
        "encoding": path | {"y": y | {"field": "smooth"}},
    }
    # Intervals of single points, for curves of few: a band needs neighbours.
    bars: Spec = {
        "transform": [{"filter": "isValid(datum.low) && !isValid(datum.crowd)"}],
        "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.5, "clip": True, **UNREAD},
    }
    return [
        {"name": "range", "mark": band} | between("least", "most"),
        {"name": "interval", "mark": band | {"opacity": 0.22}} | between("low", "high"),
        bars | between("low", "high"),
        {"data": {"name": "lines"}, "mark": level, "encoding": {"y": y}},
        {
            "data": {"name": "lines"},
            "mark": text,
            "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "text"}},
        },
        {
            "name": "curves",
            "mark": {"type": "line", "strokeWidth": 1 if smooth else 2, "opacity": 0.3 if smooth else 1, "clip": True},
            "encoding": path,
            "params": [{"name": "zoom", "select": ZOOM, "bind": "scales"}],
        },
        *([average] if smooth else []),
        {
            "transform": [{"filter": "isValid(datum.y)"}],
            "mark": {"type": "point", "filled": True} | tooltip,
            "encoding": place | {"shape": SHAPE, "size": SIZE, "opacity": FAINT if smooth else {"value": 1}},
        },
        {  # values that are no number, at the lower edge, so that nobody takes them for gaps
            "transform": [{"filter": "isValid(datum.word)"}],
            "mark": {"type": "text", "fontSize": 10, "dy": -6} | tooltip,
            "encoding": place | {"y": {"value": HEIGHT}, "text": {"field": "word"}},
        },
        {
            "data": {"name": "gaps"},
            "mark": cross | {"clip": True, "color": OTHER_COLOUR, "tooltip": {"expr": GAP_TOOLTIP}} | UNREAD,
            "encoding": {"x": x, "y": {"value": HEIGHT}},
        },
        _cursor(x),
    ]


def _description(curves: Sequence[Curve], axis: Axis) -> str:
    drawn = [curve for curve in curves if curve.series.x]
    if not drawn:
        return "no values"
    runs = ", ".join(dict.fromkeys(curve.label for curve in drawn))
    newest = "; ".join(
        f"{curve.label} has {len(curve.series.x):,} points and ends at {curve.series.last[-1]} ({axis} "
        f"{curve.series.x[-1]:,})"
        for curve in drawn
    )
    first = drawn[0].series
    return f"{first.metric} of {runs} along {AXIS_TITLES[axis]}, in {first.unit or 'no unit'}. {newest}"


def difference_chart(curve: DifferenceCurve, along: Along = "auto") -> Spec:
    """Return the chart of the difference between two runs, with intervals and a line at zero; `along` is the scale of
    the axis."""
    columns = ("low", "high", "verdict", "basis", "n")
    rows = [
        {"x": x, "y": y if isinstance(y, float) else None} | {name: getattr(curve, name)[i] for name in columns}
        for i, (x, y) in enumerate(zip(curve.x, curve.difference, strict=True))
    ]
    x = _x_of("step", scale_along(along, curve.x))
    y: Spec = {"field": "y", "type": "quantitative", "title": f"b − a, {curve.unit}"}
    return _spec(f"difference in {curve.metric} along training, with its interval at each step", rows) | {
        "datasets": {"points": rows, "lines": [{"y": 0}]},
        "params": [{"name": "at", "value": None}],
        "layer": [
            {
                "transform": [{"filter": "isNumber(datum.low) && isNumber(datum.high)"}],
                "mark": {"type": "area", "opacity": 0.22, "color": COLOURS[0], "clip": True, "aria": False},
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
            {"data": {"name": "lines"}, "mark": {"type": "rule", "color": OTHER_COLOUR} | UNREAD, "encoding": {"y": y}},
            _cursor(x),
        ],
    }


def contrast_chart(rows: Sequence[MetricDifference]) -> Spec:
    """Return the chart of the differences between two checkpoints, a line per metric, in standard errors.

    Metrics have different units. Divided by its standard error each difference has the same unit, and better is always
    to the right: the sign is turned for metrics of which lower is better. The axis is linear near zero, where verdicts
    turn, and logarithmic beyond, since some differences are thousands of standard errors.
    """
    values: Rows = []
    for row in rows:
        if isinstance(row.difference, float) and isinstance(row.stderr, float) and row.stderr > 0:
            z = (-1 if row.direction == "lower" else 1) * row.difference / row.stderr
            text, verdict = f"{row.difference:.4g} ± {row.stderr:.2g} {row.unit}", row.verdict.replace("_", " ")
            values += [{"metric": row.metric, "z": z, "verdict": verdict, "difference": text}] if isfinite(z) else []
    y: Spec = {"field": "metric", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 220}}
    x: Spec = {
        "field": "z",
        "type": "quantitative",
        "title": "difference in standard errors, better →",
        "scale": {"type": "symlog", "constant": 2},
        "axis": {"values": STANDARD_ERRORS, "labelOverlap": True},
    }
    colour = _by_verdict([str(row["verdict"]) for row in values])["color"]
    tooltip = [{"field": name} for name in ("metric", "difference", "verdict")]
    return _spec("differences between two checkpoints in standard errors, better to the right", values) | {
        "height": 18 * max(1, len(values)),
        "layer": [
            {"mark": {"type": "rule", "color": OTHER_COLOUR, "aria": False}, "encoding": {"x": {"datum": 0}}},
            {"mark": {"type": "bar", "height": 8}, "encoding": {"y": y, "x": x, "color": colour, "tooltip": tooltip}},
        ],
    }


def map_chart(losses: Mapping[tuple[int, int], float], rows: int, columns: int) -> Spec:
    """Return the chart of the loss by image code, by row and column: the higher the loss, the brighter the cell."""
    points: Rows = [{"row": row, "column": column, "loss": loss} for (row, column), loss in losses.items()]
    cell = max(2, MAP_SIDE // max(rows, columns))
    axis: Spec = {"labelOverlap": True, "labelAngle": 0, "ticks": False}
    return _spec(f"mean loss by image code, {rows} rows and {columns} columns", points) | {
        "width": cell * columns,
        "height": cell * rows,
        "autosize": "pad",
        "view": {"fill": NO_LOSS},
        "mark": {"type": "rect", "tooltip": {"content": "data"}, **UNREAD},
        "encoding": {
            "x": {"field": "column", "type": "ordinal", "scale": {"domain": list(range(columns))}, "axis": axis},
            "y": {"field": "row", "type": "ordinal", "scale": {"domain": list(range(rows))}, "axis": axis},
            "color": {
                "field": "loss",
                "type": "quantitative",
                "scale": {"scheme": "magma", "zero": False},
                "legend": {"title": "nats/token", "tickCount": 5},
            },
        },
    }


def _spec(description: str, points: Rows) -> Spec:
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
    names = list(dict.fromkeys(verdicts))
    words = "datum.label == 'indistinguishable' ? 'within noise' : datum.label"
    legend: Spec = {"orient": "top", "labelExpr": words}
    field: Spec = {"field": "verdict", "type": "nominal", "title": None, "legend": legend}
    colours = [VERDICT_COLOURS.get(name, OTHER_COLOUR) for name in names]
    shapes = [VERDICT_SHAPES.get(name, "circle") for name in names]
    return {
        "color": field | {"scale": {"domain": names, "range": colours}},
        "shape": field | {"scale": {"domain": names, "range": shapes}},
    }


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


def _x_of(axis: Axis, scale: Scale = "linear") -> Spec:
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


def _by_run(labels: Sequence[str], choices: Sequence[object]) -> Spec:
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
        "scale": {"domain": list(labels), "range": list(islice(cycle(choices), len(labels)))},
        "legend": legend if len(labels) > 1 else None,
    }


def _cursor(x: Spec) -> Spec:
    return {
        "data": {"values": [{}]},
        "transform": [{"calculate": "at", "as": "x"}, {"filter": "isValid(datum.x)"}],
        "mark": {"type": "rule", "strokeDash": [2, 2], "clip": True, **UNREAD},
        "encoding": {"x": x},
    }
