"""A chart of single values with intervals, a row for each, in the colours of the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalsvc.web.charts import COLOURS, OTHER_COLOUR, SCHEMA, Spec
from evalsvc.web.curves import Line
from study.measured import Estimate

ROW_HEIGHT = 22
LABEL_WIDTH = 260


@dataclass(frozen=True)
class Dot:
    """A value of the chart."""

    label: str
    group: str
    """Name in the legend, which has one colour and one shape."""
    estimate: Estimate


def dot_chart(dots: Sequence[Dot], title: str, lines: Sequence[Line] = ()) -> Spec:
    """Return the chart of the dots from top to bottom, with vertical lines of reference."""
    points = [
        {"label": dot.label, "group": dot.group, "x": dot.estimate.value, "low": dot.estimate.low}
        | {"high": dot.estimate.high}
        for dot in dots
    ]
    rows = list(dict.fromkeys(dot.label for dot in dots))
    x: Spec = {"field": "x", "type": "quantitative", "title": title, "scale": {"zero": False, "padding": 12}}
    y: Spec = {"field": "label", "type": "nominal", "title": None, "sort": rows, "axis": {"labelLimit": LABEL_WIDTH}}
    groups = list(dict.fromkeys(dot.group for dot in dots))
    legend: Spec | None = {"orient": "top", "title": None} if len(groups) > 1 else None
    field: Spec = {"field": "group", "type": "nominal", "legend": legend}
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(groups))]
    of_group: Spec = {
        "color": field | {"scale": {"domain": groups, "range": colours}},
        "shape": field | {"scale": {"domain": groups}},
    }
    values: Spec = {"values": [{"x": line.value, "text": line.text} for line in dict.fromkeys(lines)]}
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": ROW_HEIGHT * max(3, len(rows)),
        "autosize": {"type": "fit-x", "contains": "padding"},
        "description": f"{title}: " + "; ".join(f"{dot.label} {dot.estimate}" for dot in dots),
        "datasets": {"points": points},
        "data": {"name": "points"},
        "layer": [
            {
                "data": values,
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": OTHER_COLOUR},
                "encoding": {"x": x},
            },
            {
                "data": values,
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 11},
                "encoding": {"x": x, "y": {"value": 8}, "text": {"field": "text"}},
            },
            {
                "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}, "color": of_group["color"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"y": y, "x": x, **of_group},
            },
        ],
    }
