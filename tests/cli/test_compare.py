"""`evalsvc compare`, `gate` and `protocol`: exit codes, what they print, and what is said beside the numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from compared_runs import put
from console import Result, Shell
from gate_documents import document, read_junit, result, value
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.assets import ASSETS
from evalsvc.cli.compare import print_contrasts, print_difference_curves
from evalsvc.cli.terminal import SCREEN
from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.difference_curves import difference_curves
from evalsvc.spec.documents import Comparison
from evalsvc.spec.protocol import Protocol

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def results(tmp_path: Path) -> None:
    for name, fid, limit, right in (("before", 12.21, 1, 0.0), ("after", 12.27, 2, 1.0)):
        metrics = [
            value("coco/fid", fid, 0.1, n=30_000, ends=(fid - 0.196, fid + 0.196)),
            value("coco/kid", fid, protocol=Protocol({"limit": limit})),
            value("arc/acc", right, 0.1, direction="higher", items=("acc",)),
        ]
        items = {"arc": [{"index": at, "acc": right} for at in range(9)]}
        (tmp_path / f"{name}.json").write_text(json.dumps(document(*metrics, items=items)))


@pytest.mark.usefixtures("wide_pipe")
def test_table_and_refusal(evalsvc: Shell, results: None) -> None:
    shown = evalsvc("compare before.json after.json")
    fid, kid = (" ".join(line.split()) for line in shown.out.splitlines() if "coco/" in line)
    assert fid.startswith(
        "= coco/fid 12.21 [12.01, 12.41] 12.27 [12.07, 12.47] +0.06 -0.2172 … +0.3372 unpaired 30,000"
    )
    assert "\nB against A: ▲ 1 better, = 1 indistinguishable, 1 OTHER PROTOCOL\n" in shown.out
    assert (kid.startswith("OTHER PROTOCOL"), " none " in kid, " basis " in shown.out) == (True, True, True)
    assert (
        "2 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.1 would" in shown.out
    )
    assert shown.code == 2
    assert "measured by different protocols: coco/kid: limit 1 → 2; evaluate one" in shown.err
    written = evalsvc("compare before.json after.json --output table.txt")
    assert (written.code, written.out, written.err) == (2, "", f"wrote table.txt\n{shown.err}")
    assert Path("table.txt").read_text() == shown.out, "values of one protocol were compared"
    forced = evalsvc("compare before.json after.json --force")
    assert (forced.code, forced.err, "worse (forced)" in forced.out) == (0, "", True)


def test_some_metrics_as_csv_and_json(evalsvc: Shell, results: None) -> None:
    line = "compare before.json after.json --metric */[fa]* --level 0.5 --family holm --flipped 2 --format"
    fid, acc = evalsvc(f"{line} csv").rows
    known = {"metric": "coco/fid", "verdict": "indistinguishable", "a": "12.21", "b_stderr": "0.1"}
    assert known.items() <= fid.items()
    assert float(fid["high"]) == pytest.approx(0.06 + 0.6745 * 0.1414, abs=1e-4)
    assert (acc["only_a"], acc["only_b"], float(acc["holm"])) == ("0", "9", 2**-8)
    found = evalsvc(f"{line} json").json
    assert (found["level"], found["family"], found["expected_by_chance"]) == (0.5, "holm", None)
    assert found["contrasts"][0]["interval"]["low"] == pytest.approx(float(fid["low"]))
    assert found["contrasts"][1]["answers"]["flipped"] == {"only_a": [], "only_b": [0, 1]}


def test_runs_step_by_step(evalsvc: Shell, service: Any) -> None:
    for step, seed, right in ((0, 2, 0.2), (10, 2, 0.5), (20, 3, 0.5)):
        put(service.store, "run-a", step, 1, 0.5)
        put(service.store, "run-b", step, seed, right)
    line = "compare run-a run-b --metric arc/acc"
    shown = evalsvc(line)
    assert (shown.code, shown.err, shown.out.count(" paired ")) == (0, "", 3)
    assert "arc/acc (Arc accuracy, fraction, protocol" in shown.out
    assert "covers zero first at step 10, and at every step from 10 on; differences up to " in shown.out
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


def test_curves_say_where_they_leave_the_noise(capsys: Captured) -> None:
    """Two steps apart from each other say nothing of what follows."""
    for after, said in (
        (
            (2.0, 1.0, 1.0),
            [
                "pointwise band: the interval covers zero first at step 10, and at every step from 10 on; "
                "differences up to 0.02789 are not excluded",
                "pointwise band: the difference is beyond noise first at step 0",
            ],
        ),
        (
            (2.0, 0.5, 0.5),
            [
                "pointwise band: the interval covers zero at no step",
                "pointwise band: the difference is beyond noise first at step 0, and, by the simultaneous band, "
                "at every step from 0 on",
                "simultaneous band: the difference changes its sign between steps 0 and 10",
            ],
        ),
    ):
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
    rows = [word for line in printed.out.splitlines() for word in line.split() if word.startswith("t/")]
    assert len(printed.out.splitlines()) <= SCREEN
    assert rows[:3] == ["t/same7", "t/worse", "t/same0"]
    hidden = len(comparison.contrasts) - len(rows)
    assert printed.err == f"not shown: {hidden} metrics (= {hidden} indistinguishable); --all shows every metric\n"
    print_contrasts(comparison, whole=True)
    assert sum(" t/" in line for line in capsys.readouterr().out.splitlines()) == 82


def test_two_runs_are_a_row_for_each_metric(capsys: Captured) -> None:
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


INCEPTION = str(ASSETS["inception"].tensors)
A = Protocol({"data": "ab" * 32, "extractor": {"name": "inception", "sha256": INCEPTION}, "scale": 3.0})
B = Protocol({"data": "cd" * 32, "extractor": {"name": "inception", "sha256": INCEPTION}, "seed": 1})


@pytest.fixture
def evaluated(service: Any) -> None:
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, metric(2.0, "loss-0/fid", protocol=A), metric(2.0, "loss-0/kid", protocol=A))
    enter(service.store, submission(10), suite())
    evaluate_whole(service.store, metric(2.0, "loss-0/fid", protocol=B))


@pytest.mark.usefixtures("evaluated")
def test_digests_are_shown_with_the_files_that_they_are_of(evalsvc: Shell) -> None:
    """`{"data": "9f86d0…"}` told nobody which file was meant."""
    assert evalsvc("protocol run-a@5").out.splitlines() == [
        f"protocol {A.id} measured loss-0/fid, loss-0/kid:",
        f"  data: {'ab' * 32} (/data.jsonl)",
        "  extractor.name: inception",
        f"  extractor.sha256: {INCEPTION} (asset inception)",
        "  scale: 3.0",
    ]
    alone = evalsvc(f"protocol {A.id}").out
    assert f"  data: {'ab' * 32}\n" in alone, "which file this is, only an evaluation knows"
    assert "(asset inception)" in alone
    assert evalsvc(f"protocol {A.id} --format json").json["protocols"][0]["content"] == A.content
    csv = evalsvc("protocol run-a@5 --metric loss-0/kid --format csv").out
    assert f"{A.id},data,{'ab' * 32},/data.jsonl" in csv


@pytest.mark.usefixtures("evaluated")
def test_protocols_are_listed_and_told_apart(evalsvc: Shell) -> None:
    assert [A.id, "1", "loss-0/fid,", "loss-0/kid"] in evalsvc("protocol --run run-a").cells
    assert B.id not in evalsvc("protocol --metric loss-0/kid").out
    shown = evalsvc(f"protocol {A.id} {B.id}").cells
    assert (["scale", "3.0"] in shown, ["seed", "1"] in shown) == (True, True)
    assert evalsvc(f"protocol {A.id} {B.id} --format json").json["scale"] == {"a": 3.0}
    assert "run-a@10" in evalsvc("protocol run-a@5 run-a@10 --metric loss-0/fid").out
    assert evalsvc(f"protocol {A.id} {A.id}").out == f"{A.id} and {A.id} are the same protocol\n"
    assert "name a metric by --metric" in evalsvc(f"protocol run-a@5 {B.id}").err
    assert f"did you mean '{A.id}'" in evalsvc(f"protocol {A.id[:-1]}x").err


PAIRS = [{"index": index, "nll": 1.0 + index % 7} for index in range(100)]


def measured(rise: float, spread: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A result whose items have risen by `rise` in the mean, each by up to `spread` more or less."""
    items = [item | {"nll": item["nll"] + rise + (spread if item["index"] % 2 else -spread)} for item in PAIRS]
    mean = sum(item["nll"] for item in items) / len(items)
    return document(value("pairs/image", mean, 0.2, items=("nll",), **fields), items={"pairs": items})


def gate(evalsvc: Shell, candidate: Any, baseline: Any, options: str = "") -> Result:
    for name, content in (("candidate", candidate), ("baseline", baseline)):
        if content is not None:
            Path(f"{name}.json").write_text(json.dumps(content))
    return evalsvc(f"gate candidate.json --baseline baseline.json {options}")


def test_a_situation_in_every_form(evalsvc: Shell) -> None:
    for candidate, baseline, code, headline, annotation in (
        (measured(0), None, 3, "no baseline: there is no file", "::error title=gate::there is no file"),
        (measured(0.1, 0.2), measured(0), 1, "regression: 1 worse", "::error title=pairs/image::worse by"),
    ):
        Path("summary.md").write_text("# Build 7\n\n")
        outputs = "--output report.json --junit report.xml --markdown summary.md --annotations"
        result = gate(evalsvc, candidate, baseline, outputs)
        assert (result.code, result.err) == (code, "")
        lines = result.out.splitlines()
        assert lines[-1].startswith(headline)
        assert [line.startswith(annotation) for line in lines if line.startswith("::")] == [True]
        assert ("pairs/image" in result.out) == ("gate::" not in annotation)
        assert json.loads(Path("report.json").read_text())["exit_code"] == code
        assert read_junit(Path("report.xml").read_bytes())[0].get("tests") == "1"
        assert Path("summary.md").read_text().startswith(f"# Build 7\n\n### Gate: {headline}")


def test_rules_and_the_family_of_the_option_before_theirs(evalsvc: Shell) -> None:
    Path("rules.yaml").write_text("rules: [{metric: pairs/*, absolute: 0.15}]")
    assert gate(evalsvc, measured(0.1, 0.2), measured(0), "--rules rules.yaml").code == 0
    assert gate(evalsvc, measured(0.2, 0.2), measured(0), "--rules rules.yaml").code == 1
    Path("rules.yaml").write_text("{rules: [{metric: '*'}], family: holm}")
    for option, family in (("", "holm"), ("--family none", "none")):
        options = f"--rules rules.yaml --output report.json {option}"
        result = gate(evalsvc, measured(0.0, 0.2), measured(0), options)
        assert json.loads(Path("report.json").read_text())["alarms"]["family"] == family
        assert "false alarms: 1 metric, at a level of 0.00135" in result.out
    refused = gate(evalsvc, measured(0), measured(0), "--output .")
    words = "--output . cannot be written: is a directory; name another file [invalid_request]"
    assert (refused.code, words in refused.err) == (2, True)


@pytest.mark.usefixtures("wide_pipe")
def test_two_seeds(evalsvc: Shell) -> None:
    sides = [measured(0.0, 0.2 * seed, protocol=Protocol({"sampling": {"seed": seed}})) for seed in (0, 1)]
    refused = gate(evalsvc, *sides)
    assert (refused.code, "or give --across-seeds" in refused.out) == (2, True)
    judged = gate(evalsvc, *sides, "--across-seeds")
    assert (judged.code, "measured under two seeds: sampling.seed 1 → 0" in judged.out) == (0, True)


def test_a_service_is_asked_as_long_as_it_takes_and_no_longer(evalsvc: Shell, service: Any, weights: Path) -> None:
    for step in (0, 400):
        evalsvc(f"submit run-a {step} {weights} --suite loss")
    line = "gate run-a@400 --baseline run-a@0 --suite loss"
    late = evalsvc(f"{line} --timeout 0")
    assert (late.code, late.err) == (4, "evaluation 1 (loss) is queued\n")
    service.coordinator.work()
    assert evalsvc(line).code == 0
