"""`evalsvc compare`: what it prints, and what is said beside the numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from compared_runs import put
from console import Shell
from gate_documents import document, result, value

from evalsvc.cli.compare import print_contrasts, print_difference_curves
from evalsvc.cli.terminal import SCREEN
from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.difference_curves import difference_curves
from evalsvc.spec.documents import Comparison
from evalsvc.spec.protocol import Protocol

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def results(tmp_path: Path) -> None:
    for name, fid, limit in (("before", 12.21, 1), ("after", 12.27, 2)):
        metrics = [
            value("coco/fid", fid, 0.1, n=30_000, ends=(fid - 0.196, fid + 0.196)),
            value("coco/kid", fid, protocol=Protocol({"limit": limit})),
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(document(*metrics)))


def test_table_and_refusal(evalsvc: Shell, results: None) -> None:
    shown = evalsvc("compare before.json after.json")
    fid, kid = (" ".join(line.split()) for line in shown.out.splitlines() if "coco/" in line)
    assert fid == (
        "indistinguishable coco/fid 12.21 [12.01, 12.41] 12.27 [12.07, 12.47] +0.06 -0.2172 … +0.3372 unpaired 30,000"
    )
    assert (kid.startswith("OTHER PROTOCOL"), " none " in kid, " basis " in shown.out) == (True, True, True)
    verdicts = "1 metric has a verdict at level 0.95, each by itself: if nothing had changed, about 0.05 would"
    assert verdicts in shown.out
    assert shown.code == 2
    assert "measured by different protocols: coco/kid: limit 1 → 2; evaluate one" in shown.err
    written = evalsvc("compare before.json after.json --output table.txt")
    assert (written.code, written.out, written.err) == (2, "", f"wrote table.txt\n{shown.err}")
    assert Path("table.txt").read_text() == shown.out, "values of one protocol were compared"
    forced = evalsvc("compare before.json after.json --force")
    assert (forced.code, forced.err, "worse (forced)" in forced.out) == (0, "", True)


def test_one_metric_as_csv_and_json(evalsvc: Shell, results: None) -> None:
    line = "compare before.json after.json --metric */fid --level 0.5 --family holm --format"
    [row] = evalsvc(f"{line} csv").rows
    known = {"metric": "coco/fid", "verdict": "indistinguishable", "a": "12.21", "b_stderr": "0.1"}
    assert known.items() <= row.items()
    assert float(row["high"]) == pytest.approx(0.06 + 0.6745 * 0.1414, abs=1e-4)
    found = evalsvc(f"{line} json").json
    assert (found["level"], found["family"], found["expected_by_chance"]) == (0.5, "holm", None)
    assert found["contrasts"][0]["interval"]["low"] == pytest.approx(float(row["low"]))


def test_right_answers(evalsvc: Shell, service: Any) -> None:
    for step, right in ((0, 0.8), (10, 0.4)):
        put(service.store, "run-a", step, step, right)
    line = "compare run-a@0 run-a@10 --metric arc/acc --flipped 2 --format"
    answers = evalsvc(f"{line} json").json["contrasts"][0]["answers"]
    assert len(answers["flipped"]["only_a"]) == 2
    [row] = evalsvc(f"{line} csv").rows
    assert (row["only_a"], float(row["holm"])) == (str(answers["only_a"]), answers["holm"])


def test_runs_step_by_step(evalsvc: Shell, service: Any) -> None:
    for step, seed, right in ((0, 2, 0.2), (10, 2, 0.5), (20, 3, 0.5)):
        put(service.store, "run-a", step, 1, 0.5)
        put(service.store, "run-b", step, seed, right)
    line = "compare run-a run-b --metric arc/acc"
    shown = evalsvc(line)
    assert (shown.code, shown.err, shown.out.count(" paired ")) == (0, "", 3)
    assert "arc/acc (fraction, protocol" in shown.out
    [curve] = evalsvc(f"{line} --format json").json["curves"]
    closed = f"covers zero at every step from 10 on; differences up to {curve['largest_not_excluded']:.4g} are not"
    assert closed in " ".join(shown.out.split())
    rows = evalsvc(f"{line} --band simultaneous --format csv").rows
    verdicts = [("0", "worse"), ("10", "indistinguishable"), ("20", "indistinguishable")]
    assert [(row["step"], row["verdict"]) for row in rows] == verdicts
    assert float(rows[0]["step_level"]) == pytest.approx(1 - 0.05 / 3)
    [curve] = evalsvc(f"{line} --band simultaneous --format json").json["curves"]
    assert curve["first_indistinguishable"] == 10
    assert "A: run-b@0\nB: run-b\n" in evalsvc("compare run-b").out


def test_a_comparison_says_whose_result_is_suspicious(capsys: Captured) -> None:
    warning = {"code": "inputs_cut", "metric": "loss/total", "message": "9 sequences were cut"}
    found = {"a": "x@1", "b": "x@2", "level": 0.95, "contrasts": [], "warnings": {"a": [], "b": [warning]}}
    print_contrasts(Comparison.model_validate(found))
    assert capsys.readouterr().err == "warning: B, loss/total: 9 sequences were cut\n"


@pytest.mark.usefixtures("wide_pipe")
def test_left_out_items_right_answers_and_verdicts_of_chance_are_said(capsys: Captured) -> None:
    sides = []
    for side in (0, 1):
        rows = [{"index": index, "x": math.sin(index + 9 * side)} for index in range(3 * side, 20 + side)]
        metrics = [value("t/x", 0.0, 0.1, n=len(rows), items=("x",)), value("t/y", 0.0)]
        sides.append(result(*metrics, name=str(side), items={"t": rows}))
    print_contrasts(compare_results(*sides))
    shown = capsys.readouterr().out
    first, second = (line for line in shown.splitlines() if "t/x" in line or "t/y" in line)
    assert ("3 only in A, 1 only in B" in first, "only" in second) == (True, False)
    assert "2 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.1 would be" in shown
    metrics[0] = value("t/x", 1 / 3, 0.1, n=21, direction="higher", items=("x",))
    items = [[{"index": index, "x": float(index % 3 == right)} for index in range(21)] for right in (0, 1)]
    sides = [result(*metrics, items={"t": rows}) for rows in items]
    print_contrasts(compare_results(*sides, Options(family="holm")))
    shown = capsys.readouterr().out
    for words in ("only A / B right", "7 / 7", "p (Holm, all metrics)", "2 metrics have a verdict, judged together by"):
        assert words in shown


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((2.0, 1.0), ["the interval covers zero first at step 10", "the difference is beyond noise first at step 0"]),
        (
            (2.0, 1.0, 1.0),
            [
                "the interval covers zero first at step 10",
                "pointwise band: the interval covers zero at every step from 10 on; "
                "differences up to 0.02789 are not excluded",
                "the difference is beyond noise first at step 0",
            ],
        ),
        (
            (2.0, 0.5, 0.5),
            [
                "the interval covers zero at no step",
                "the difference is beyond noise first at step 0",
                "simultaneous band: the difference is beyond noise at every step from 0 on",
                "simultaneous band: the difference changes its sign between steps 0 and 10",
            ],
        ),
    ],
)
def test_curves_say_where_they_leave_the_noise(after: tuple[float, ...], said: list[str], capsys: Captured) -> None:
    """Two steps apart from each other say nothing of what follows."""
    steps = [(10 * at, result(value("t/x", 1.0)), result(value("t/x", number))) for at, number in enumerate(after)]
    print_difference_curves(difference_curves("a", "b", steps, Options()))
    assert capsys.readouterr().out.rstrip().splitlines()[-len(said) :] == said


def test_a_comparison_is_a_screen_with_the_headline_and_what_differs(capsys: Captured) -> None:
    """Two checkpoints with the benchmarks of a large suite printed hundreds of lines."""
    same = [value(f"t/same{number}", 1.0, 0.1) for number in range(80)]
    sides = [result(*same, value("t/worse", worse, 0.1), value("t/other", 1.0, 0.1)) for worse in (1.0, 9.0)]
    comparison = compare_results(*sides)
    print_contrasts(comparison, headline=["t/same7"], fits_screen=True)
    printed = capsys.readouterr()
    rows = [line.split()[1] for line in printed.out.splitlines() if " t/" in line]
    assert len(printed.out.splitlines()) <= SCREEN
    assert rows[:3] == ["t/same7", "t/worse", "t/same0"]
    hidden = len(comparison.contrasts) - len(rows)
    assert printed.err == f"not shown: {hidden} metrics ({hidden} indistinguishable); --all shows every metric\n"
    print_contrasts(comparison, whole=True)
    assert sum(" t/" in line for line in capsys.readouterr().out.splitlines()) == 82


def test_two_runs_are_a_row_for_each_metric(capsys: Captured) -> None:
    """They printed 1,064 lines."""
    names = [*"abcdefgh", *range(60)]
    steps = [
        (step, result(*[value(f"t/{name}", 1.0) for name in names]), result(*[value(f"t/{name}", b) for name in names]))
        for step, b in ((0, 2.0), (10, 1.0), (20, 1.0))
    ]
    print_difference_curves(difference_curves("a", "b", steps, Options()), headline=["t/h"], every_step=False)
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if " t/" in line]
    assert len(printed.out.splitlines()) <= SCREEN
    assert rows[0][1:3] == ["t/h", "20"]
    assert f"not shown: {len(names) - len(rows)} metrics, companions among them\n" in printed.err
    assert "--metric NAME shows every step of a metric, and --all every metric\n" in printed.err
