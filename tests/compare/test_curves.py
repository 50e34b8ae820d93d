"""Runs along their steps: joined curves, where a difference leaves the noise, and verdicts on the newest value."""

import math
import random
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pytest
from compared_runs import items, metrics
from gate_documents import result, value

from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.curves import JoinedHistories, join_histories, require_comparable, tabulate
from evalsvc.compare.difference_curves import crossings, difference_curves, level_of_looks, with_verdicts
from evalsvc.compare.result import Result
from evalsvc.errors import NotComparable, UnknownName
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.documents import BestPoint, HeadlineSeries, NewestVerdict, Point
from evalsvc.spec.documents.comparisons import Band, Crossings, Verdict
from evalsvc.spec.documents.history import History, ImportSource, ValueSeries
from evalsvc.spec.protocol import MetricValue, Protocol

CONTENTS: dict[str, dict[str, Any]] = {
    "p1": {"data": "ab", "sampling": {"guidance_scale": 1.0}},
    "p3": {"data": "ab", "sampling": {"guidance_scale": 3.0}},
    "px": {"data": "cd", "sampling": {"guidance_scale": 1.0}},
}


def history(run: str, *series: tuple[str, str], **fields: Any) -> History:
    said: dict[str, Any] = {"variant": "raw", "unit": "", "direction": "lower", "baseline": None, "differs": {}}
    said |= {"x": [0, 25], "value": [2.0, 1.0], **{key: [None, None] for key in ("stderr", "low", "high", "n")}}
    said |= {"import_": None, "omitted": 0}
    return History(
        run=run,
        x="step",
        series=[ValueSeries(metric=metric, protocol=protocol, **said | fields) for metric, protocol in series],
        names=[],
        imports={"1": ImportSource(source=f"sheet of {run}", created_at="2026-02-03T10:11:12.131+00:00")},
        next_cursor=None,
    )


def join(*histories: History, force: bool = False) -> JoinedHistories:
    return join_histories(histories, CONTENTS.__getitem__, force)


def curves(joined: JoinedHistories) -> list[tuple[str, str | None, list[str]]]:
    return [(curve.metric, curve.protocol, [one.run for one in curve.series]) for curve in joined.curves]


def test_what_has_one_protocol_is_one_curve() -> None:
    joined = join(history("run-a", ("loss/text", "p1")), history("run-b", ("loss/text", "p1"), ("coco/fid", "p3")))
    assert curves(joined) == [("loss/text", "p1", ["run-a", "run-b"]), ("coco/fid", "p3", ["run-b"])]
    require_comparable(joined)
    assert join(history("run-a", ("coco/fid", "p1")), history("run-b")).refused == {}, "a run without values"


def test_another_protocol_is_another_curve_that_says_how_it_differs() -> None:
    joined = join(history("run-a", ("coco/fid", "p1"), ("coco/fid", "p3")), history("run-b", ("coco/fid", "p1")))
    assert curves(joined) == [("coco/fid", "p1", ["run-a", "run-b"]), ("coco/fid", "p3", ["run-a"])]
    assert [curve.differs for curve in joined.curves] == [{"sampling.guidance_scale": scale} for scale in (1.0, 3.0)]


def test_runs_without_a_protocol_in_common_are_refused_with_the_fields() -> None:
    joined = join(
        history("run-a", ("coco/fid", "p1"), ("loss/text", "p1")),
        history("run-b", ("coco/fid", "p1"), ("loss/text", "p1")),
        history("run-c", ("coco/fid", "p3"), ("coco/fid", "px")),
    )
    assert curves(joined) == [("loss/text", "p1", ["run-a", "run-b"])]
    with pytest.raises(NotComparable, match=r"coco/fid: run-a and run-c differ in sampling.guidance_scale 1.0 → 3.0; "):
        require_comparable(joined)


def test_forced_they_are_on_one_curve_that_says_so() -> None:
    joined = join(history("run-a", ("coco/fid", "p1")), history("run-b", ("coco/fid", "px")), force=True)
    require_comparable(joined)
    assert curves(joined) == [("coco/fid", None, ["run-a", "run-b"])]
    assert [one.differs for one in joined.curves[0].series] == [{"data": "ab"}, {"data": "cd"}]


def test_points_along_a_metric_are_those_of_one_checkpoint() -> None:
    """A value of step 25 beside one of step 0 would be a point that no checkpoint has."""
    later = history("run-a", ("loss/text", "p1"), x=[25, 50], value=["NaN", 4.0], stderr=[0.1, None])
    errors = {"stderr": [0.2, 0.3], "low": [8.6, None], "high": [9.4, None]}
    image = history("run-a", ("loss/image", "p1"), value=[9.0, 3.0], import_=[None, 1], **errors)
    other = history("run-b", ("loss/image", "p1"), x=[25], value=[5.0], stderr=[None], low=[None], high=[None])
    none = {"low": None, "high": None}
    joined = join(image.model_copy(update={"series": image.series + later.series}), other)
    found = tabulate(joined, "loss/image")
    assert (found.x, found.against, found.columns) == ("step", "loss/image", ["loss/text"])
    first = {"value": 9.0, "stderr": 0.2, "low": 8.6, "high": 9.4, "import": None}
    both = {"value": 3.0, "stderr": 0.3, **none, "import": 1}, {"value": "NaN", "stderr": 0.1, **none, "import": None}
    assert [(row["run"], row["step"], row["loss/image"], row["loss/text"]) for row in found.rows] == [
        ("run-a", 0, first, None),
        ("run-a", 25, *both),
        ("run-b", 25, {"value": 5.0, "stderr": None, **none, "import": None}, None),
    ]
    assert found.imports["run-a"]["1"].source == "sheet of run-a"


def test_an_axis_is_measured_in_one_way() -> None:
    both = history("run-a", ("loss/image", "p1"), ("loss/image", "p3"), ("loss/text", "p1"), stderr=[0.1, 0.1])
    with pytest.raises(NotComparable, match=r"guidance_scale=1.0; sampling.guidance_scale=3.0"):
        tabulate(join(both), "loss/image")
    columns = [f"loss/image (sampling.guidance_scale={scale})" for scale in (1.0, 3.0)]
    assert tabulate(join(both), "loss/text").columns == columns
    with pytest.raises(UnknownName, match="did you mean 'loss/text'"):
        tabulate(join(both), "loss/txt")
    strangers = join(history("run-a", ("loss/image", "p1")), history("run-b", ("loss/image", "px")))
    with pytest.raises(NotComparable, match="loss/image is no axis for these runs: run-a and run-b differ in data"):
        tabulate(strangers, "loss/image")


IN: Verdict = "indistinguishable"
OUT: Verdict = "worse"
BACK: Verdict = "better"
UNKNOWN: Verdict = "no_error_known"


def crossed(pointwise: Sequence[Verdict], simultaneous: Sequence[Verdict]) -> Crossings:
    """Every ten steps, of a metric of which lower is better, in the pointwise band."""
    differences = [{IN: 0.5, OUT: 1.5, BACK: -1.5}.get(verdict, math.nan) for verdict in simultaneous]
    steps = range(0, 10 * len(pointwise), 10)
    return crossings(steps, pointwise, pointwise, simultaneous, differences, [5.0 - step / 10 for step in steps])


def at(
    first_in: int | None, always_in: int | None, first_out: int | None, always_out: int | None, *changes: list[int]
) -> Crossings:
    return Crossings(
        first_indistinguishable=first_in,
        indistinguishable_from=always_in,
        largest_not_excluded=None if always_in is None else 5.0 - always_in / 10,
        first_apart=first_out,
        apart_from=always_out,
        sign_changes=list(changes),
    )


def test_where_it_enters_and_leaves_the_noise() -> None:
    for verdicts, expected in (
        ([OUT, OUT, IN, OUT, IN, IN], at(20, 40, 0, None)),
        ([IN, OUT, IN, OUT, OUT], at(0, None, 10, 30)),
        ([OUT, BACK, IN, OUT, OUT], at(20, None, 0, 30, [0, 10], [10, 30])),
        ([IN, IN], at(0, 0, None, None)),
        ([OUT, OUT], at(None, None, 0, 0)),
        ([IN, UNKNOWN], at(0, None, None, None)),
        ([IN, OUT], at(0, None, 10, None)),
        ([OUT, IN], at(10, None, 0, None)),
        ([IN], at(0, None, None, None)),
        ([], at(None, None, None, None)),
    ):
        assert crossed(verdicts, verdicts) == expected


def test_a_gap_has_closed_by_pointwise_intervals_and_is_apart_by_the_simultaneous_band() -> None:
    """The simultaneous band is the wider the more steps there are, so more checkpoints closed every gap earlier."""
    assert crossed([OUT, BACK, OUT, OUT], [OUT, IN, IN, IN]) == at(None, None, 0, None)
    assert crossed([OUT, OUT, IN, IN], [OUT, IN, IN, IN]) == at(20, 20, 0, None)
    assert crossed([OUT, OUT, OUT, OUT], [OUT, IN, OUT, OUT]) == at(None, None, 0, 20)


def side(name: str, numbers: list[float]) -> Result:
    metric = value("pairs/text", fmean(numbers), standard_error(numbers), n=len(numbers), items=("nll",))
    return result(metric, name=name, items={"pairs": [{"index": index, "nll": x} for index, x in enumerate(numbers)]})


def runs(gaps: dict[int, float], n: int = 100, noise: float = 0.1) -> list[tuple[int, Result, Result]]:
    """At each step two checkpoints whose difference is the gap exactly, with the standard error noise / sqrt(n)."""
    generator = random.Random(0)
    pairs = []
    for step, gap in gaps.items():
        common, own = ([generator.gauss(5, 1) for _ in range(n)] for _ in "ab")
        centre, spread = fmean(own), stdev(own)
        other = [a + gap + noise * (one - centre) / spread for a, one in zip(common, own, strict=True)]
        pairs.append((step, side("a", common), side("b", other)))
    return pairs


def test_the_gap_of_two_runs_closes() -> None:
    """The shape of the paper's figure 4: far apart at first, then within the noise; 0.01 is one standard error."""
    pairs = runs({0: 2.0, 10: 0.5, 20: -0.015, 40: 0.03, 80: 0.005, 300: -0.01})
    found = difference_curves("a", "b", pairs, Options())
    (curve,) = found.curves
    for place, (_, a, b) in enumerate(pairs):
        (contrast,) = compare_results(a, b).contrasts
        assert (curve.difference[place], curve.stderr[place]) == (contrast.difference, contrast.stderr)
        assert (curve.low[place], curve.high[place]) == (contrast.interval.low, contrast.interval.high)
    assert curve.x == [0, 10, 20, 40, 80, 300]
    assert curve.difference == pytest.approx([2.0, 0.5, -0.015, 0.03, 0.005, -0.01])
    assert curve.stderr == pytest.approx([0.01] * 6)
    # Student's quantile with 99 degrees of freedom, and a little more for the skewness of the items.
    assert curve.high[2] == pytest.approx(-0.015 + 1.984 * 0.01, rel=0.15)
    assert curve.verdict == [OUT, OUT, IN, OUT, IN, IN]
    places = curve.first_indistinguishable, curve.indistinguishable_from, curve.first_apart, curve.apart_from
    assert places == (20, 80, 0, None)
    assert curve.largest_not_excluded == max(-float(curve.low[5] or 0), float(curve.high[4] or 0)), "at either end"
    assert (found.band, curve.step_level, curve.basis) == ("pointwise", 0.95, ["paired"] * 6)


def test_many_looks_ask_for_more() -> None:
    """0.024 is 2.4 standard errors: beyond a pointwise interval, and nothing among six looks."""
    gaps = dict.fromkeys(range(6), 0.024)
    (pointwise,) = difference_curves("a", "b", runs(gaps), Options()).curves
    (simultaneous,) = difference_curves("a", "b", runs(gaps), Options(), "simultaneous").curves
    assert (pointwise.first_indistinguishable, pointwise.first_apart) == (None, 0)
    assert (pointwise.indistinguishable_from, pointwise.apart_from) == (None, None), "six looks neither close nor open"
    assert (simultaneous.indistinguishable_from, simultaneous.first_indistinguishable) == (None, 0)
    assert simultaneous.step_level == pytest.approx(1 - 0.05 / 6)
    assert simultaneous.high[0] - simultaneous.difference[0] > 1.3 * (pointwise.high[0] - 0.024)
    assert simultaneous.simultaneous_level == pointwise.simultaneous_level == simultaneous.step_level
    assert level_of_looks(0.9, 0) == pytest.approx(0.9)


@pytest.mark.parametrize("band", ["pointwise", "simultaneous"])
def test_the_document_says_which_band_each_crossing_rests_on(band: Band) -> None:
    bands = difference_curves("a", "b", runs({0: 1.0, 1: 1.0}), Options(), band).crossings_rest_on
    assert (bands.first_indistinguishable, bands.first_apart, bands.indistinguishable_from) == (band, band, "pointwise")
    assert (bands.apart_from, bands.sign_changes) == ("simultaneous", "simultaneous")


def test_a_step_that_lacks_the_metric_is_left_out_and_a_value_that_is_no_number_is_apart() -> None:
    pairs = runs({0: 0.0})
    pairs.append((5, result(value("other/x", 1.0)), pairs[0][2]))
    pairs.append((10, pairs[0][1], side("b", [math.nan] * 100)))
    (curve,) = difference_curves("a", "b", pairs, Options(("pairs/text",))).curves
    assert curve.x == [0, 10]
    assert curve.b[1] == curve.difference[1] == "NaN"
    assert (curve.verdict[1], curve.low[1], curve.first_apart) == ("worse", None, 10)


def measured(seed: int, number: float = 1.0) -> MetricValue:
    return value("coco/fid", number, protocol=Protocol({"seed": seed}))


def test_other_protocols_have_no_curve() -> None:
    alike = value("coco/kid", 1.0)
    pairs = [(0, result(measured(0), alike), result(measured(1), alike))]
    found = difference_curves("a", "b", pairs, Options())
    assert [curve.metric for curve in found.curves] == ["coco/kid"]
    assert found.refused == {"coco/fid": "at step 0 seed 0 → 1"}
    with pytest.raises(NotComparable, match=r"a and b were measured .*: coco/fid: at step 0 seed 0 → 1; evaluate"):
        difference_curves("a", "b", pairs, Options(("coco/fid",)))
    (forced,) = difference_curves("a", "b", pairs, Options(("coco/fid",), force=True)).curves
    assert (forced.protocol, forced.basis) == (None, ["unpaired"])


def test_two_protocols_are_two_curves() -> None:
    both = result(measured(0), measured(1, 2.0))
    curves = difference_curves("a", "b", [(0, both, both)], Options()).curves
    assert [(curve.a, curve.differs) for curve in curves] == [([1.0], {"seed": 0}), ([2.0], {"seed": 1})]
    sides = [result(measured(seed)) for seed in (0, 1, 2)]
    assert difference_curves("a", "b", [(0, sides[0], sides[0])], Options()).curves[0].differs == {}
    pairs = [(0, sides[0], sides[1]), (5, sides[0], sides[2])]
    names = [curve.differs for curve in difference_curves("a", "b", pairs, Options(force=True)).curves]
    ids = [measured(seed).protocol.id for seed in (0, 1, 2)]
    assert names == [{"protocol": f"{ids[0]} → {ids[1]}"}, {"protocol": f"{ids[0]} → {ids[2]}"}]


METRIC = "arc/acc"


def answered(name: str, seed: int, right: float) -> Result:
    rows = items(seed, right)
    return result(*metrics(rows), name=name, items={"language-0": rows}, task="language-0")


ANSWERS = {0: (1, 0.3), 10: (2, 0.7), 20: (3, 0.68)}
RESULTS = {f"run@{step}": answered(f"run@{step}", *answers) for step, answers in ANSWERS.items()}


def point(step: int, value: float | None = None, import_: int | None = None, **fields: Any) -> Point:
    if value is None:
        [found] = RESULTS[f"run@{step}"].values[METRIC].values()
        return Point(step=step, value=found.value, stderr=found.stderr, n=found.n, groups=None, import_=None)
    return Point(step=step, value=value, import_=import_, **{"stderr": 0.01, "n": 400, "groups": None, **fields})


def series(latest: Point, best: Point | None, base: Point | None = None, of: int = 1, **fields: Any) -> HeadlineSeries:
    [protocol] = RESULTS["run@0"].values[METRIC]
    rest: dict[str, Any] = {"metric": METRIC, "variant": "raw", "protocol": protocol, "unit": "fraction"}
    rest |= {"direction": "higher", "baseline": None, "differs": {}, "x": [], "values": []}
    name = None if base is None else f"run@{base.step}"
    best_of = None if best is None else BestPoint(**vars(best), of=of)
    return HeadlineSeries(**rest | fields, latest=latest, best=best_of, base=base, base_name=name)


def verdicts(item: HeadlineSeries) -> list[NewestVerdict]:
    [found] = with_verdicts("run", [item], lambda names: {name: RESULTS[name] for name in names})
    return found.verdicts


def test_measured_values_are_paired_as_in_a_comparison() -> None:
    best, base = verdicts(series(point(20), point(10), point(0)))
    for found, other in ((best, "run@10"), (base, "run@0")):
        [row] = compare_results(RESULTS[other], RESULTS["run@20"], Options((METRIC,))).contrasts
        assert (found.checkpoint, found.basis) == (other, "paired")
        assert (found.difference, found.stderr, found.verdict) == (row.difference, row.stderr, row.verdict)
    assert (best.verdict, base.verdict) == ("indistinguishable", "better")


def test_imported_values_are_compared_by_their_own_errors() -> None:
    latest, best = point(20, 0.50, import_=1), point(10, 0.60, import_=1)
    [worse] = verdicts(series(latest, best))
    assert (worse.verdict, worse.basis, worse.difference) == ("worse", "unpaired", 0.50 - 0.60)
    [better] = verdicts(series(latest, best, direction="lower"))
    assert better.verdict == "better"
    [unknown] = verdicts(series(latest.model_copy(update={"stderr": None}), best))
    assert (unknown.verdict, unknown.basis, unknown.stderr) == ("no_error_known", "none", None)
    [few] = verdicts(series(latest.model_copy(update={"n": None}), best))
    assert few.verdict == "no_error_known", "nobody knows how many items are behind the error"


def test_the_best_of_many_is_judged_at_a_level_for_so_many() -> None:
    """Judged as if the best had not been chosen, .20 of the newest of 20 equal checkpoints were worse."""
    [found] = verdicts(series(point(20, 0.5, import_=1), point(10, 0.6, import_=1), of=20))
    assert (found.best_of, found.level) == (20, pytest.approx(1 - 0.05 / 19))
    assert found.verdict == "worse", "by seven errors of the difference"
    [found] = verdicts(series(point(20, 0.57, import_=1), point(10, 0.6, import_=1), of=20))
    assert found.verdict == "indistinguishable", "by two errors"
    [best, base] = verdicts(series(point(20), point(10), point(0), of=3))
    assert (best.level, base.level, base.best_of) == (pytest.approx(1 - 0.05 / 2), 0.95, 1)


def test_a_value_has_no_verdict_against_itself() -> None:
    assert verdicts(series(point(20), point(20))) == []
    assert verdicts(series(point(0), None, point(0))) == []
    assert verdicts(series(point(20), None)) == []


def test_a_value_that_is_no_number_and_a_checkpoint_that_is_gone() -> None:
    latest = point(20, 0.5, import_=1).model_copy(update={"value": "NaN"})
    [found] = verdicts(series(latest, point(10, 0.6, import_=1)))
    assert (found.difference, found.verdict) == ("NaN", "no_error_known")
    [found] = with_verdicts("run", [series(point(20), point(10))], lambda names: {})
    assert [verdict.basis for verdict in found.verdicts] == ["unpaired"]
