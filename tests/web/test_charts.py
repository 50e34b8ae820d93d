"""Charts as specs and as pictures, the script that draws them, and their series: averages, lines and gaps."""

import json
import math
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_documents import example
from lxml import etree
from programs import lacking

from evalsvc.errors import DeadlineExceeded, InternalError, MissingPackage
from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import Buckets, BucketSeries, Gap
from evalsvc.web import vega
from evalsvc.web.charts import (
    COLOURS,
    VERDICT_COLOURS,
    Along,
    Spec,
    colours_of,
    contrast_chart,
    curve_chart,
    difference_chart,
    scale_along,
)
from evalsvc.web.curves import Curve, Line, Missing, companions_of, lines_of, missing_of, smoothed

HOSTILE = "</script><img src=x onerror=alert(1)>"


def series(
    values: list[Number], metric: str = "loss/text", protocol: str = "p1", unit: str = "nats/token", **fields: object
) -> BucketSeries:
    """A series as the service answers with it."""
    size, finite = len(values), [value if isinstance(value, float) else None for value in values]
    given: dict[str, object] = {"metric": metric, "variant": "raw", "protocol": protocol, "unit": unit, "omitted": 0}
    given |= {"direction": "lower", "baseline": None, "differs": {}, "count": [1] * size, "last": values}
    given |= {"x": [10 * (at + 1) for at in range(size)]}
    given |= dict.fromkeys(("stderr", "low", "high", "n"), [None] * size)
    given |= dict.fromkeys(("min", "max", "mean"), finite)
    given |= dict.fromkeys(("nan", "positive_infinity", "negative_infinity", "imported"), [0] * size)
    return BucketSeries.model_validate({**given, **fields})


def curves(*given: BucketSeries, smoothing: float = 0.0) -> list[Curve]:
    return [Curve("run-a", item, smoothed(item, smoothing) if smoothing else ()) for item in given]


def gap(step: int, variant: str = "raw", message: str = "it broke") -> Gap:
    return Gap(step=step, variant=variant, suite="quick", evaluation=7, why="failed", message=message)


GAP = Missing("run-a", gap(25, message="long " * 60))


def rows(spec: Spec, name: str) -> list[dict[str, object]]:
    return list(spec["datasets"][name])


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


def test_a_run_keeps_its_colour_and_dash_when_values_come() -> None:
    """The layers depend on the question alone, so that a page can give a chart new data and keep its zoom."""
    [early], [late] = curves(series([1.0])), curves(series([1.0, 2.0, "NaN"], baseline=3.0, stderr=[0.1, None, None]))
    other = replace(early, run="run-b")
    specs = [curve_chart([early, other]), curve_chart([late, other], [GAP], [Line(3.0, "chance 3")])]
    shapes = [json.dumps({**spec, "datasets": None, "description": None}) for spec in specs]
    assert shapes[0] == shapes[1]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_run_has_one_colour_on_all_pages_and_none_of_a_verdict() -> None:
    """By its place in an address a run changed its colour, and the second one was as orange as "worse"."""
    names = [f"run-{number}" for number in range(8)]
    [alone] = colours_of(["run-3"]).values()
    assert colours_of(["run-3", *names])["run-3"] == alone
    assert len(set(colours_of(names).values())) == len(names), "in one chart no two are alike"
    assert colours_of(["a:ema", "a"])["a"] == colours_of(["a"])["a"]
    assert not {*COLOURS} & {VERDICT_COLOURS["better"], VERDICT_COLOURS["worse"]}
    for colour in COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3, "on white"
        assert (luminance(colour) + 0.05) / (luminance("#0d1117") + 0.05) >= 3, "on dark"


def test_the_description_says_what_a_reader_would_see() -> None:
    text = curve_chart(curves(series([1.0, 2.5])))["description"]
    assert text == "loss/text of run-a along training step, in nats/token. run-a has 2 points and ends at 2.5 (step 20)"
    assert curve_chart(curves(series([])))["description"] == "no values"


@pytest.mark.parametrize(
    ("along", "places", "scale"),
    [
        ("auto", [0, 10, 20, 80, 300, 3000], "log"),
        ("auto", [0, 1000, 2000, 3000], "linear"),
        ("auto", [0, 3000], "linear"),
        ("auto", [], "linear"),
        ("linear", [0, 10, 3000], "linear"),
        ("log", [0, 1000, 2000], "log"),
    ],
)
def test_the_axis_is_logarithmic_where_all_steps_but_one_are_early(along: Along, places: list[int], scale: str) -> None:
    assert scale_along(along, places) == scale


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
    other = one.series.model_copy(update={"protocol": "p2"})
    several = [one, replace(one, run=HOSTILE), replace(one, run="run-c", series=other)]
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
    given = json.dumps(specs, allow_nan=False)
    done = subprocess.run([sys.executable, "-c", WARNING], input=given, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("short_process")
def test_a_screen_reader_has_a_name_of_every_mark() -> None:
    """A layer without rows, such as gaps of a run without gaps, was a symbol of which nothing was said."""
    values = series([3 - step / 10 for step in range(5)], low=[2.5] * 5, high=[3.5] * 5, n=[8] * 5)
    root = etree.fromstring(vega.render(curve_chart([Curve(run, values) for run in ("a", "b")]), "svg"))
    symbols = [element for element in root.iter() if element.get("role") == "graphics-symbol"]
    assert len(symbols) > 10
    assert [dict(symbol.attrib) for symbol in symbols if not symbol.get("aria-label")] == []


def fitted(steps: list[int], values: list[float], size: int) -> list[float]:
    """At each step, the line through the `size` nearest values with tricube weights, by least squares over all."""
    x, y, smooth = np.array(steps, float), np.array(values), []
    for at in x:
        distances = abs(x - at)
        nearest = np.argsort(distances, kind="stable")[:size]
        root = np.sqrt(np.clip(1 - (distances / distances[nearest].max()) ** 3, 0, None) ** 3)
        design = np.stack([np.ones_like(x), x - at], axis=1)
        level = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0][0]
        smooth.append(float(np.clip(level, y[nearest].min(), y[nearest].max())))
    return smooth


@pytest.mark.parametrize(("weight", "size"), [(0.3, 4), (0.6, 7), (0.97, 14)])
def test_the_average_is_that_of_the_definition(weight: float, size: int) -> None:
    """Fitted anew at every step, over finite values only, and over at most a quarter of these."""
    own = random.Random(1)
    values: list[Number] = [own.gauss(0, 3) for _ in range(60)]
    values[7:9] = ["NaN", "Infinity"]
    steps = sorted(own.sample(range(10_000), 60))
    smooth = smoothed(series(values, x=steps), weight)
    finite = [at for at, value in enumerate(values) if isinstance(value, float)]
    expected = fitted([steps[at] for at in finite], [float(values[at]) for at in finite], size)
    assert [smooth[at] for at in finite] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert smooth[7:9] == [None, None]


@pytest.mark.parametrize(("weight", "gain"), [(0.6, 1.9), (0.9, 3), (0.97, 2.5)])
def test_the_average_of_a_falling_curve_stays_within_its_intervals(weight: float, gain: float) -> None:
    """A mean over past buckets lagged behind: it was outside of the 95 % intervals at 87 of these 250 points."""
    own, sides, off = random.Random(0), 0, 0.0
    for _ in range(20):
        truth = [0.8 - 0.5 * math.exp(-4 * at / 250) for at in range(250)]
        noisy = [value + own.gauss(0, 0.01) for value in truth]
        for value, noise, smooth in zip(truth, noisy, smoothed(series(list(noisy)), weight), strict=True):
            sides += not noise - 0.0196 <= smooth <= noise + 0.0196
            off += (smooth - value) ** 2
    assert sides / 5000 < 0.06, "the interval of a value covers the truth at .95 of the points"
    assert math.sqrt(off / 5000) < 0.01 / gain, "nearer to the truth than the values"


def test_a_straight_line_stays_one_and_an_average_lies_among_its_values_however_large_they_are() -> None:
    steps = [0, 10, 20, 80, 300, 3000, 3001, 9000, 10_000, 30_000]
    assert smoothed(series([2.0 * step for step in steps], x=steps), 0.9) == pytest.approx([2 * step for step in steps])
    smooth = smoothed(series([1.7e308, -1.7e308, 1.7e308, 5e-324]), 0.9)
    assert all(value is not None and abs(value) <= 1.7e308 for value in smooth)
    assert smoothed(series([1.0]), 0.9) == [1.0]


def test_companions_are_read_at_the_same_places_and_one_that_never_changes_is_a_line() -> None:
    perplexity = series([7.4, 2.7], "loss/text_perplexity", unit="perplexity", x=[20, 30])
    other = series([0.0, 0.0], "loss/text_perplexity", protocol="p2")
    assert companions_of(series([2.0, 1.0]), [perplexity, other]) == {"perplexity": {20: 7.4, 30: 2.7}}
    unigram = series([6.5, 6.5], "loss/text_unigram", protocol="of the data")
    moving = series([6.5, 6.6], "loss/text_unigram_by_place")
    perplexity = series([9.0, 9.0], "loss/text_perplexity", unit="perplexity")
    main = series([2.0, 1.0], baseline=9.25)
    assert list(lines_of(main, [unigram, moving, perplexity])) == [Line(9.25, "chance 9.25"), Line(6.5, "unigram 6.5")]
    assert list(lines_of(series([1.0], baseline="NaN"), [])) == []


def test_a_gap_is_of_the_curve_that_lacks_the_value_and_on_the_chart_along_steps_only() -> None:
    [row] = rows(curve_chart(curves(series([1.0])), [GAP]), "gaps")
    assert (row["x"], row["run"], row["why"]) == (25, "run-a", "failed")
    assert len(str(row["message"])) == 160
    assert rows(curve_chart(curves(series([1.0])), [GAP], axis="tokens"), "gaps") == []
    gaps = tuple(gap(step, variant) for step, variant in ((10, "raw"), (15, "raw"), (15, "ema")))
    values = series([1.0, 2.0])
    where = {"run": "run-a", "x": "step", "sampled": True, "start": 0, "width": 10, "names": []}
    buckets = Buckets.model_validate({**where, "series": [values], "gaps": list(gaps)})
    [found] = missing_of(buckets, curves(values))
    assert (found.label, found.gap.step) == ("run-a", 15)


SPEC: dict[str, Any] = {
    "width": "container",
    "height": 100,
    "description": "a <line> & more",
    "data": {"values": [{"x": 1, "y": 2, "run": "</text><script>alert(1)</script>"}, {"x": 2, "y": 1, "run": "b"}]},
    "mark": "line",
    "encoding": {
        "x": {"field": "x", "type": "quantitative"},
        "y": {"field": "y", "type": "quantitative"},
        "color": {"field": "run", "type": "nominal"},
    },
}


@pytest.mark.usefixtures("child_process")
def test_the_script_is_made_once_and_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Browsers keep it for a year under its name, so one that is made differently has another."""
    made = vega.script(tmp_path / "a")
    before = made.stat()
    assert vega.script(tmp_path / "a") == made
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert vega.script(tmp_path / "b").read_bytes() == made.read_bytes()
    assert made.name == vega.script_name()
    assert vega.SNIPPET.encode()[:16] in made.read_bytes()
    monkeypatch.setattr(vega, "SNIPPET", "window.other = vegaEmbed;")
    assert vega.script_name() != made.name


@pytest.mark.usefixtures("child_process")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_chart_is_a_picture_of_lines_and_texts(theme: vega.Theme) -> None:
    """It is opened by others, alone: nothing in it runs, and nothing is loaded from another address."""
    content = vega.render(SPEC, "svg", theme)
    root = etree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{*}script", "{*}foreignObject", "{*}image", "{*}a"))
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or "href" in key]
    assert "</text><script>alert(1)</script>" in "".join(root.itertext())
    assert vega.config(theme)["background"] in content.decode()
    assert float(root.get("width")) >= vega.WIDTH
    png = vega.render({**SPEC, "width": 300, "autosize": {"type": "fit", "contains": "padding"}}, "png", theme)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (600, 200), "two pixels a point"


@pytest.mark.usefixtures("child_process")
def test_a_chart_loads_nothing(tmp_path: Path) -> None:
    """A spec is made here, and yet the engine may not read addresses and files in the name of the service."""
    secret = tmp_path / "secret.json"
    secret.write_text('[{"text": "a secret"}]')
    words = {"mark": "text", "encoding": {"text": {"field": "text"}}}
    assert b"a secret" in vega.render({**words, "data": {"values": json.loads(secret.read_text())}}, "svg")
    for url in (secret.as_uri(), str(secret), "http://127.0.0.1:9/secret.json"):
        with suppress(InternalError):
            assert b"a secret" not in vega.render({**words, "data": {"url": url}}, "svg")


@pytest.mark.usefixtures("child_process")
def test_a_chart_that_cannot_be_drawn_or_takes_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InternalError, match=re.escape("the package vl-convert-python failed to render a chart: ")):
        vega.render({"mark": 7}, "svg")
    monkeypatch.setattr(vega, "SECONDS", 0.01)
    with pytest.raises(DeadlineExceeded, match=r"was not rendered within 0\.01 s; ask for fewer runs or points"):
        vega.render(SPEC, "svg")


@pytest.mark.parametrize(("code", "words"), [(-signal.SIGTRAP, "by the signal SIGTRAP"), (-99, "99"), (1, "code 1")])
def test_what_a_dying_engine_says_is_not_told(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer ended with the last line of the engine's backtrace, and so with addresses of the process."""
    said = b"==== C stack trace ====\n /lib/libc.so.6(+0x89133) [0x7f1c9f3a9133]\n"
    done = subprocess.CompletedProcess([], code, b"", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(InternalError) as raised:
        vega.render(SPEC, "svg")
    assert words in raised.value.message
    assert "MemoryDenyWriteExecute" in raised.value.message
    assert "0x" not in raised.value.message


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vega, "PACKAGE", "no_such_package")
    assert not vega.is_installed()
    for ask in (vega.script_name, lambda: vega.script(tmp_path), lambda: vega.render(SPEC, "svg")):
        with pytest.raises(MissingPackage, match=r"a chart needs the package 'vl-convert-python'; run: pip install "):
            ask()
