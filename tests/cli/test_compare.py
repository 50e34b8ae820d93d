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

from evalsvc.spec.protocol import Protocol


@pytest.fixture
def results(tmp_path: Path) -> None:
    for name, fid, limit in (("before", 12.21, 1), ("after", 12.27, 2)):
        metrics = [
            metric_value("coco/fid", fid, 0.1, n=30_000, ends=(fid - 0.196, fid + 0.196)),
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
    written = command("compare", "before.json", "after.json", "--output", "table.txt")
    assert (written.code, written.out, written.err) == (2, "", f"wrote table.txt\n{result.err}")
    assert Path("table.txt").read_text() == result.out, "values of one protocol were compared"
    forced = command("compare", "before.json", "after.json", "--force")
    assert (forced.code, forced.err) == (0, "")
    assert "worse (forced)" in forced.out


def test_one_metric_as_csv_and_json(command: Command, results: None) -> None:
    arguments = ["compare", "before.json", "after.json", "--metric", "*/fid", "--level", "0.5", "--family", "holm"]
    (row,) = csv.DictReader(io.StringIO(command(*arguments, "--format", "csv").out))
    assert (row["metric"], row["verdict"], row["a"], row["b_stderr"]) == (
        "coco/fid",
        "indistinguishable",
        "12.21",
        "0.1",
    )
    assert float(row["high"]) == pytest.approx(0.06 + 0.6745 * 0.1414, abs=1e-4)
    found = json.loads(command(*arguments, "--format", "json").out)
    assert (found["level"], found["family"], found["expected_by_chance"]) == (0.5, "holm", None)
    assert found["contrasts"][0]["interval"]["low"] == pytest.approx(float(row["low"]))


def test_right_answers(command: Command, service: Any) -> None:
    put(service.store, "run-a", 0, 1, 0.8)
    put(service.store, "run-a", 10, 2, 0.4)
    arguments = ["compare", "run-a@0", "run-a@10", "--metric", "arc/acc", "--flipped", "2", "--format"]
    answers = json.loads(command(*arguments, "json").out)["contrasts"][0]["answers"]
    assert len(answers["flipped"]["only_a"]) == 2
    (row,) = csv.DictReader(io.StringIO(command(*arguments, "csv").out))
    assert (row["only_a"], float(row["holm"])) == (str(answers["only_a"]), answers["holm"])


def test_runs_step_by_step(command: Command, service: Any) -> None:
    for step, right in ((0, 0.2), (10, 0.5)):
        put(service.store, "run-a", step, 1, 0.5)
        put(service.store, "run-b", step, 2, right)
    result = command("compare", "run-a", "run-b", "--metric", "arc/acc")
    assert (result.code, result.err) == (0, "")
    assert "arc/acc (fraction, protocol" in result.out
    assert result.out.count(" paired ") == 2
    put(service.store, "run-a", 20, 1, 0.5)
    put(service.store, "run-b", 20, 3, 0.5)
    closed = command("compare", "run-a", "run-b", "--metric", "arc/acc").out
    (curve,) = json.loads(command("compare", "run-a", "run-b", "--metric", "arc/acc", "--format", "json").out)["curves"]
    line = "the interval covers zero at every step from 10 on; differences up to"
    assert f"{line} {curve['largest_not_excluded']:.4g} are not excluded" in " ".join(closed.split())
    simultaneous = [*("compare", "run-a", "run-b", "--metric", "arc/acc", "--band", "simultaneous"), "--format"]
    rows = list(csv.DictReader(io.StringIO(command(*simultaneous, "csv").out)))
    assert [(row["step"], row["verdict"]) for row in rows] == [
        ("0", "worse"),
        ("10", "indistinguishable"),
        ("20", "indistinguishable"),
    ]
    assert float(rows[0]["step_level"]) == pytest.approx(1 - 0.05 / 3)
    assert json.loads(command(*simultaneous, "json").out)["curves"][0]["first_indistinguishable"] == 10
    assert "A: run-b@0\nB: run-b\n" in command("compare", "run-b").out
    refused = command("compare", "run-a", "run-b", "--family", "holm")
    assert refused.code == 2
    assert "leave --family out, or give --band simultaneous" in refused.err


def test_one_checkpoint_is_compared_with_nothing(command: Command, results: None) -> None:
    for name in ("before.json", "run-a@0"):
        result = command("compare", name)
        assert (result.code, result.out) == (2, "")
        assert (
            f"{name} has nothing to be compared with; give a second checkpoint or file as B, or give a run as A"
            in result.err
        )
