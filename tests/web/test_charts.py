"""Charts as specs: what they hold, and that Vega-Lite takes them without a warning."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from curve_series import curves, gap, series
from example_documents import example
from lxml import etree
from programs import lacking

from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.web import vega
from evalsvc.web.charts import Spec, contrast_chart, curve_chart, difference_chart
from evalsvc.web.curves import Curve, Line, Missing

HOSTILE = "</script><img src=x onerror=alert(1)>"

GAP = Missing("run-a", gap(25, message="long " * 60))


def rows(spec: Spec, name: str) -> list[dict[str, object]]:
    datasets = spec["datasets"]
    assert isinstance(datasets, dict)
    return list(datasets[name])


def test_a_row_has_only_what_a_point_has() -> None:
    given = series([5.0, "NaN"], stderr=[0.5, None], low=[4.0, None], high=[6.0, None], n=[100, None], imported=[0, 1])
    first, second = rows(curve_chart(curves(given)), "points")
    assert first.keys() == {"run", "series", "x", "y", "low", "high", "stderr", "n"}
    assert second == {"run": "run-a", "series": "run-a p1", "x": 20, "y": None, "word": "NaN", "kind": "imported"}


def test_a_logarithmic_scale_has_no_place_for_zero() -> None:
    """A band to zero would reach down to minus infinity."""
    given = curves(series([5.0, 0.0, -1.0], stderr=[9.0, None, None], low=[-9.0, None, None], high=[19.0, None, None]))
    spec = curve_chart(given, lines=[Line(0.0, "chance 0")], scale="log")
    found = rows(spec, "points")
    assert [row["y"] for row in found] == [5.0, None, None]
    assert "low" not in found[0]
    assert [row.get("shown") for row in found] == [None, 0.0, -1.0]
    assert rows(spec, "lines") == []


def test_gaps_are_on_the_chart_along_steps_only() -> None:
    [row] = rows(curve_chart(curves(series([1.0])), [GAP]), "gaps")
    assert (row["x"], row["run"], row["why"]) == (25, "run-a", "failed")
    assert len(str(row["message"])) == 160
    assert rows(curve_chart(curves(series([1.0])), [GAP], axis="tokens"), "gaps") == []


def test_a_run_keeps_its_colour_and_dash_when_values_come() -> None:
    """The layers depend on the question alone, so that a page can give a chart new data and keep its zoom."""
    [early], [late] = curves(series([1.0])), curves(series([1.0, 2.0, "NaN"], baseline=3.0, stderr=[0.1, None, None]))
    other = replace(early, run="run-b")
    specs = [curve_chart([early, other]), curve_chart([late, other], [GAP], [Line(3.0, "chance 3")])]
    shapes = [json.dumps({**spec, "datasets": None, "description": None}) for spec in specs]
    assert shapes[0] == shapes[1]


def test_the_description_says_what_a_reader_would_see() -> None:
    text = curve_chart(curves(series([1.0, 2.5])))["description"]
    assert text == "loss/text of run-a along training step, in nats/token. run-a has 2 points and ends at 2.5 (step 20)"
    assert curve_chart(curves(series([])))["description"] == "no values"


WARNING = """
import json, sys
import vl_convert
for spec in json.load(sys.stdin):
    vl_convert.vegalite_to_svg(spec, show_warnings=True, allowed_base_urls=[])
"""


def test_vega_lite_draws_every_spec_without_a_warning(child_process: None) -> None:
    if not vega.is_installed():
        lacking("dashboard", "needs vl-convert-python, of the extra `dashboard`")
    [one] = curves(
        series([1.0, "NaN", 3.0, 4.0], stderr=[0.1, None, 0.2, 0.1], count=[1, 1, 3, 1], min=[1.0, None, 2.0, 4.0]),
        smoothing=0.5,
    )
    several = [
        one,
        replace(one, run=HOSTILE),
        replace(one, run="run-c", series=one.series.model_copy(update={"protocol": "p2"})),
    ]
    specs = [
        curve_chart([one], [GAP], [Line(2.0, "chance 2")]),
        *(
            curve_chart(several, [GAP], [Line(2.0, "chance 2")], axis=axis, scale="log", along="log", smooth=True)
            for axis in ("step", "tokens")
        ),
        difference_chart(example(DifferenceCurve)),
        contrast_chart([example(MetricDifference), example(MetricDifference, verdict="better", metric=HOSTILE)]),
    ]
    assert all(rows(spec, "points") for spec in specs)
    for spec in specs:
        spec["width"] = 400
    done = subprocess.run(
        [sys.executable, "-c", WARNING],
        input=json.dumps(specs, allow_nan=False),
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("short_process")
def test_a_screen_reader_has_a_name_of_every_mark() -> None:
    """A layer without rows, such as gaps of a run without gaps, was a symbol of which nothing was said."""
    values = series([3 - step / 10 for step in range(5)], low=[2.5] * 5, high=[3.5] * 5, n=[8] * 5)
    root = etree.fromstring(vega.render(curve_chart([Curve(run, values) for run in ("a", "b")]), "svg"))
    symbols = [element for element in root.iter() if element.get("role") == "graphics-symbol"]
    assert len(symbols) > 10
    assert [dict(symbol.attrib) for symbol in symbols if not symbol.get("aria-label")] == []
