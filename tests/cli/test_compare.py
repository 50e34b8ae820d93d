"""`evalsvc compare`: what it prints, and when it refuses."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from compared_runs import put
from console import Command
from gate_documents import document
from gate_documents import value as metric_value
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.spec.protocol import Protocol


@pytest.fixture
def results(tmp_path: Path) -> None:
    for name, fid, limit in (("before", 12.21, 1), ("after", 12.27, 2)):
        metrics = [
            metric_value("coco/fid", fid, 0.1, n=30_000),
            metric_value("coco/kid", fid, protocol=Protocol({"limit": limit})),
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(document(*metrics)))


def test_table_and_refusal(command: Command, results: None) -> None:
    result = command("compare", "before.json", "after.json")
    (fid,) = (line for line in result.out.splitlines() if "coco/fid" in line)
    assert " ".join(fid.split()) == (
        "indistinguishable coco/fid 12.21 [12.01, 12.41] 12.27 [12.07, 12.47] +0.06 -0.2172 … +0.3372 unpaired 30,000"
    )
    assert (
        "1 metric has a verdict at level 0.95, each by itself: if nothing had changed, about 0.05 would" in result.out
    )
    (kid,) = (line for line in result.out.splitlines() if "coco/kid" in line)
    assert "OTHER PROTOCOL" in kid
    assert " none " in kid
    assert " basis " in result.out
    assert result.code == 2
    assert "measured by different protocols: coco/kid: limit 1 → 2; evaluate one" in result.err
    forced = command("compare", "before.json", "after.json", "--force")
    assert (forced.code, forced.err) == (0, "")
    assert "worse (forced)" in forced.out


def test_one_metric_as_csv_and_json(command: Command, results: None) -> None:
    arguments = ["compare", "before.json", "after.json", "--metric", "*/fid", "--level", "0.5"]
    (row,) = csv.DictReader(io.StringIO(command(*arguments, "--format", "csv").out))
    assert (row["metric"], row["verdict"], row["a"], row["b_stderr"]) == (
        "coco/fid",
        "indistinguishable",
        "12.21",
        "0.1",
    )
    assert float(row["high"]) == pytest.approx(0.06 + 0.6745 * 0.1414, abs=1e-4)
    found = json.loads(command(*arguments, "--format", "json").out)
    assert (found["level"], found["contrasts"][0]["interval"]["low"]) == (0.5, pytest.approx(float(row["low"])))


def test_checkpoints_of_the_service(command: Command, service: Any) -> None:
    for step, value in ((0, 2.5), (25, 1.5)):
        enter(service.store, submission(step), suite("loss"))
        evaluate_whole(service.store, metric(value))
    result = command("compare", "run-a@0", "run-a@25")
    assert (result.code, "better" in result.out) == (0, True)


def test_right_answers(command: Command, service: Any) -> None:
    put(service.store, "run-a", 0, 1, 0.8)
    put(service.store, "run-a", 10, 2, 0.4)
    arguments = ["compare", "run-a@0", "run-a@10", "--metric", "*/acc", "--flipped", "2"]
    table = command(*arguments).out
    assert "only A / B right" in table
    found = json.loads(command(*arguments, "--format", "json").out)["contrasts"]
    rows = list(csv.DictReader(io.StringIO(command(*arguments, "--format", "csv").out)))
    for one, row in zip(found, rows, strict=True):
        answers = one["answers"]
        assert f"{answers['only_a']} / {answers['only_b']}" in table
        assert len(answers["flipped"]["only_a"]) == 2
        assert (row["only_a"], float(row["holm"])) == (str(answers["only_a"]), answers["holm"])


def test_verdicts_on_all_metrics_together(command: Command, service: Any) -> None:
    put(service.store, "run-a", 0, 1, 0.8)
    put(service.store, "run-a", 10, 2, 0.4)
    alone, together = (command("compare", "run-a@0", "run-a@10", "--family", family) for family in ("none", "holm"))
    assert "4 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.2" in alone.out
    assert "4 metrics have a verdict, judged together by Holm's method: if nothing had" in together.out
    assert "p (Holm, all metrics)" in together.out
    found = json.loads(command("compare", "run-a@0", "run-a@10", "--family", "holm", "--format", "json").out)
    assert (found["family"], found["judged"], found["expected_by_chance"]) == ("holm", 4, None)
    for one in found["contrasts"]:
        assert (one["p_holm"] <= 0.05) == (one["verdict"] in ("better", "worse"))


def test_runs_step_by_step(command: Command, service: Any) -> None:
    for step, right in ((0, 0.2), (10, 0.5)):
        put(service.store, "run-a", step, 1, 0.5)
        put(service.store, "run-b", step, 2, right)
    result = command("compare", "run-a", "run-b", "--metric", "arc/acc")
    assert (result.code, result.err) == (0, "")
    assert "arc/acc (fraction, protocol" in result.out
    assert result.out.count(" paired ") == 2
    assert "the interval covers zero first at step 10\n" in result.out
    assert "the difference is beyond noise first at step 0\n" in result.out
    assert "always" not in result.out, "two steps apart from each other say nothing of what follows"
    simultaneous = [*("compare", "run-a", "run-b", "--metric", "arc/acc", "--band", "simultaneous"), "--format"]
    rows = list(csv.DictReader(io.StringIO(command(*simultaneous, "csv").out)))
    assert [(row["step"], row["verdict"]) for row in rows] == [("0", "worse"), ("10", "indistinguishable")]
    assert float(rows[0]["step_level"]) == pytest.approx(0.975)
    assert json.loads(command(*simultaneous, "json").out)["curves"][0]["first_indistinguishable"] == 10
    assert "A: run-b@0\nB: run-b\n" in command("compare", "run-b").out
    put(service.store, "run-b", 20, 2, 0.9)
    put(service.store, "run-a", 20, 1, 0.5)
    found = command("compare", "run-a", "run-b", "--metric", "arc/acc").out
    assert "simultaneous band: the difference changes its sign between steps 0 and 20" in found
    for step in (30, 40):
        put(service.store, "run-b", step, 2, 0.9)
        put(service.store, "run-a", step, 1, 0.5)
    found = command("compare", "run-a", "run-b", "--metric", "arc/acc").out
    assert "simultaneous band: the difference is beyond noise from step 20 on always" in found
    refused = command("compare", "run-a", "run-b", "--family", "holm")
    assert refused.code == 2
    assert "--family is for two checkpoints; along runs, use --band simultaneous" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["before.json"], "before.json is compared with nothing; give a second checkpoint or file, or a run alone"),
        (["run-a@0"], "run-a@0 is compared with nothing"),
    ],
)
def test_bad_argument(command: Command, results: None, arguments: list[str], words: str) -> None:
    result = command("compare", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
