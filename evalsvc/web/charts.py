"""Charts as Vega-Lite specs. A browser draws a spec, and `vega.svg` and `vega.png` render the same spec.

Colours are those of Okabe and Ito, which people with colour blindness tell apart; dash patterns tell lines apart in
print. Texts and axes have no colours here: `vega.DARK` and `vega.LIGHT` give those of the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.spec.documents.history import Axis, Gap
from evalsvc.web.curves import Curve

Spec = dict[str, object]
"""A Vega-Lite spec, as JSON."""

Rows = list[dict[str, object]]

Scale = Literal["linear", "log"]

T = TypeVar("T")

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
"""Colours of runs, in their order. Yellow is darker than Okabe and Ito's, which is faint on white."""

DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [12, 3], [4, 4], [1, 3], [10, 2, 2, 2, 2, 2])

HEIGHT = 220

AXIS_TITLES: Mapping[Axis, str] = {"step": "training step", "tokens": "training tokens"}

VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00"}
OTHER_COLOUR = "#7f7f7f"


def curve_chart(
    curves: Sequence[Curve], gaps: Sequence[Gap] = (), *, axis: Axis = "step", scale: Scale = "linear"
) -> Spec:
    """Return the chart of one metric of several runs, with intervals.

    The chart has two parameters: `zoom`, the selection that scales follow, and `at`, a step to mark or null. On a
    logarithmic scale values up to zero are left out.
    """
    labels = list(dict.fromkeys(curve.label for curve in curves))
    rows = [row for curve in curves for row in _rows(curve, scale)]
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "description": _description(curves),
        "datasets": {"points": rows, "gaps": _gap_rows(gaps) if axis == "step" else []},
        "data": {"name": "points"},
        "params": [{"name": "at", "value": None}],
        "layer": list(_curve_layers(curves, labels, axis, scale)),
        "resolve": {"scale": {"y": "shared"}},
    }


def _curve_layers(curves: Sequence[Curve], labels: Sequence[str], axis: Axis, scale: Scale) -> Iterator[Spec]:
    x = {"field": "x", "type": "quantitative", "title": AXIS_TITLES[axis], "axis": {"format": "~s"}}
    y_scale = {"type": "log"} if scale == "log" else {"zero": False}
    title = curves[0].unit if curves else None
    y: Spec = {"field": "y", "type": "quantitative", "title": title, "scale": y_scale}
    several = len(labels) > 1
    colour: Spec = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(labels), "range": _repeated(COLOURS, len(labels))},
        "legend": {"orient": "top", "title": None, "labelLimit": 400} if several else None,
    }
    dash: Spec = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(labels), "range": _repeated(DASHES, len(labels))},
        "legend": None,
    }
    smooth = any(point.smooth is not None for curve in curves for point in curve.points)
    lines: Spec = {"x": x, "y": y, "color": colour, "strokeDash": dash, "detail": {"field": "series"}}
    finite = [{"filter": "datum.y !== null"}]
    yield _band("range", "least", "most", 0.12, x, y, colour)
    yield _band("interval", "low", "high", 0.25, x, y, colour)
    for baseline in sorted({curve.baseline for curve in curves if isinstance(curve.baseline, float)}):
        if scale == "linear" or baseline > 0:
            yield from _baseline(baseline, y)
    yield {
        "name": "lines",
        "transform": finite,
        "mark": {"type": "line", "strokeWidth": 1 if smooth else 2, "opacity": 0.35 if smooth else 1},
        "encoding": lines,
        "params": [{"name": "zoom", "select": "interval", "bind": "scales"}],
    }
    if smooth:
        yield {
            "transform": [{"filter": "datum.smooth !== null"}],
            "mark": {"type": "line", "strokeWidth": 2.5},
            "encoding": {**lines, "y": {**y, "field": "smooth"}},
        }
    yield {
        "transform": finite,
        "mark": {"type": "point", "size": 26, "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "color": colour,
            "shape": {
                "field": "kind",
                "type": "nominal",
                "scale": {"domain": ["measured", "imported", "virtual"], "range": ["circle", "square", "triangle-up"]},
                "legend": None,
            },
            "tooltip": [{"field": name, "title": title} for name, title in TOOLTIP.items()],
        },
    }
    yield {  # values that are no number stand at the lower edge, so that nobody takes them for a gap
        "transform": [{"filter": "datum.word !== null"}],
        "mark": {"type": "text", "fontSize": 9, "dy": -4},
        "encoding": {
            "x": x,
            "y": {"value": HEIGHT},
            "text": {"field": "word"},
            "color": colour,
            "tooltip": [{"field": name, "title": title} for name, title in TOOLTIP.items()],
        },
    }
    yield {
        "data": {"name": "gaps"},
        "mark": {"type": "tick", "thickness": 2, "height": 10, "yOffset": -5, "color": OTHER_COLOUR},
        "encoding": {
            "x": {**x, "field": "step"},
            "y": {"value": HEIGHT},
            "tooltip": [{"field": name} for name in ("step", "run", "why", "message")],
        },
    }
    yield {
        "data": {"values": [{}]},
        "transform": [{"calculate": "at", "as": "x"}, {"filter": "isValid(datum.x)"}],
        "mark": {"type": "rule", "strokeDash": [2, 2]},
        "encoding": {"x": {"field": "x", "type": "quantitative"}},
    }


TOOLTIP = {
    "run": "run",
    "x": "at",
    "shown": "value",
    "stderr": "± stderr",
    "n": "n",
    "count": "values",
    "kind": "",
}


def _band(name: str, low: str, high: str, opacity: float, x: Spec, y: Spec, colour: Spec) -> Spec:
    return {
        "name": name,
        "transform": [{"filter": f"datum.{low} !== null"}],
        "mark": {"type": "area", "opacity": opacity},
        "encoding": {
            "x": x,
            "y": {**y, "field": low},
            "y2": {"field": high},
            "color": colour,
            "detail": {"field": "series"},
        },
    }


def _baseline(value: float, y: Spec) -> Iterator[Spec]:
    line: Spec = {"data": {"values": [{"y": value, "text": f"knows nothing: {value:.4g}"}]}}
    yield {**line, "mark": {"type": "rule", "strokeDash": [4, 3], "color": OTHER_COLOUR}, "encoding": {"y": y}}
    yield {
        **line,
        "mark": {"type": "text", "align": "right", "dy": -5, "fontSize": 10, "color": OTHER_COLOUR},
        "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "text"}},
    }


def _rows(curve: Curve, scale: Scale) -> Iterator[dict[str, object]]:
    series = f"{curve.label} {curve.protocol}"
    floor = 0.0 if scale == "log" else float("-inf")

    def drawn(value: object) -> object:
        return value if isinstance(value, float) and value > floor else None

    for point in curve.points:
        low = drawn(point.low)
        yield {
            "run": curve.label,
            "series": series,
            "x": point.x,
            "y": drawn(point.value),
            "low": low,
            "high": point.high if low is not None else None,
            "least": drawn(point.least),
            "most": point.most if drawn(point.least) is not None else None,
            "smooth": drawn(point.smooth),
            "word": None if isinstance(point.value, float) else point.value,
            "shown": f"{point.value:.6g}" if isinstance(point.value, float) else point.value,
            "stderr": point.stderr,
            "n": point.n,
            "count": point.count,
            "kind": "imported" if point.imported else "virtual" if point.virtual else "measured",
        }


def _gap_rows(gaps: Sequence[Gap]) -> Rows:
    return [{"step": gap.step, "run": gap.variant, "why": gap.why, "message": gap.message[:160]} for gap in gaps]


def _description(curves: Sequence[Curve]) -> str:
    """Return the text that a screen reader reads for the chart."""
    if not curves:
        return "no values"
    runs = ", ".join(dict.fromkeys(curve.label for curve in curves))
    newest = "; ".join(
        f"{curve.label} ends at {curve.points[-1].value} (step {curve.points[-1].x:,})"
        for curve in curves
        if curve.points
    )
    return f"{curves[0].metric} of {runs} along training, in {curves[0].unit or 'no unit'}. {newest}"


def difference_chart(curve: DifferenceCurve) -> Spec:
    """Return the chart of the difference between two runs, with intervals and a line at zero."""
    rows: Rows = [
        {
            "x": x,
            "y": curve.difference[i] if isinstance(curve.difference[i], float) else None,
            "low": curve.low[i],
            "high": curve.high[i],
            "verdict": curve.verdict[i],
            "basis": curve.basis[i],
            "n": curve.n[i],
        }
        for i, x in enumerate(curve.x)
    ]
    x: Spec = {"field": "x", "type": "quantitative", "title": AXIS_TITLES["step"], "axis": {"format": "~s"}}
    y: Spec = {"field": "y", "type": "quantitative", "title": f"b − a, {curve.unit}"}
    verdicts = list(dict.fromkeys(curve.verdict))
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "description": f"difference in {curve.metric} along training, with its interval at each step",
        "datasets": {"points": rows},
        "data": {"name": "points"},
        "params": [{"name": "at", "value": None}],
        "layer": [
            {
                "transform": [{"filter": "isNumber(datum.low)"}],
                "mark": {"type": "area", "opacity": 0.25, "color": COLOURS[0]},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": COLOURS[0]},
                "encoding": {"x": x, "y": y},
                "params": [{"name": "zoom", "select": "interval", "bind": "scales"}],
            },
            {
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {
                        "field": "verdict",
                        "type": "nominal",
                        "title": None,
                        "legend": {"orient": "top"},
                        "scale": {
                            "domain": verdicts,
                            "range": [VERDICT_COLOURS.get(verdict, OTHER_COLOUR) for verdict in verdicts],
                        },
                    },
                    "tooltip": [{"field": name} for name in ("x", "y", "low", "high", "verdict", "basis", "n")],
                },
            },
            {"data": {"values": [{"y": 0}]}, "mark": {"type": "rule", "color": OTHER_COLOUR}, "encoding": {"y": y}},
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
            sign = -1 if row.direction == "lower" else 1
            values.append(
                {
                    "metric": row.metric,
                    "z": sign * row.difference / row.stderr,
                    "verdict": row.verdict,
                    "difference": f"{row.difference:.4g} ± {row.stderr:.2g} {row.unit}",
                }
            )
    verdicts = list(dict.fromkeys(str(row["verdict"]) for row in values))
    y: Spec = {"field": "metric", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": {"step": 18},
        "autosize": {"type": "fit-x", "contains": "padding"},
        "description": "differences between two checkpoints in standard errors, better to the right",
        "datasets": {"points": values},
        "data": {"name": "points"},
        "layer": [
            {
                "mark": {"type": "rule", "color": OTHER_COLOUR},
                "encoding": {"x": {"datum": 0}},
            },
            {
                "mark": {"type": "bar", "height": 8},
                "encoding": {
                    "y": y,
                    "x": {"field": "z", "type": "quantitative", "title": "difference in standard errors, better →"},
                    "color": {
                        "field": "verdict",
                        "type": "nominal",
                        "title": None,
                        "legend": {"orient": "top"},
                        "scale": {
                            "domain": verdicts,
                            "range": [VERDICT_COLOURS.get(verdict, OTHER_COLOUR) for verdict in verdicts],
                        },
                    },
                    "tooltip": [{"field": name} for name in ("metric", "difference", "verdict")],
                },
            },
        ],
    }


def _repeated(choices: Sequence[T], number: int) -> list[T]:
    return [choices[i % len(choices)] for i in range(number)]
