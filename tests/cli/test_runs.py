"""`evalsvc runs`, `checkpoints`, `delete` and `plan`."""

from pathlib import Path
from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, measure, metric, submission, suite

from evalsvc.cli.runs import parse_planned
from evalsvc.spec.documents import PlannedSuite


def test_runs_are_listed_and_shown(evalsvc: Shell, service: Any, tmp_path: Path) -> None:
    assert evalsvc("runs").out == "no run exists yet; evalsvc submit posts a checkpoint\n"
    enter(service.store, submission(5, tags={"lr": "1e-4"}, tokens_seen=640), suite())
    enter(service.store, submission(10, variant="ema"))
    assert ["run-a", "2", "10"] in [row[:3] for row in evalsvc("runs").cells]
    [run] = evalsvc("runs --format json").json["runs"]
    assert (run["name"], run["last_step"]) == ("run-a", 10)
    listed = evalsvc("runs --format csv --output runs.csv")
    assert (listed.code, listed.out) == (0, "")
    assert (tmp_path / "runs.csv").read_text().startswith("name,checkpoints,last_step")
    lines = [" ".join(row) for row in evalsvc("runs run-a").cells]
    assert "base: run run-a, step 0, variant raw, named no" in lines
    assert "id step variant uri tokens seen created evaluations" in lines
    assert [line.split()[:3] for line in lines if line[:1].isdigit()] == [["1", "5", "raw"], ["2", "10", "ema"]]
    shown = evalsvc("checkpoints run-a@5")
    assert {"step: 5", 'tags: {"lr": "1e-4"}', "in_use: yes", "sha256:"} <= set(shown.out.splitlines())
    assert ["1", "quick", "queued"] in shown.cells
    for name in ("run-a@10:ema", "2"):
        assert evalsvc(f"checkpoints {name} --format json").json["variant"] == "ema"


def test_the_latest_and_the_best_values_are_shown(evalsvc: Shell, service: Any) -> None:
    for step, value in ((5, 2.0), (10, 3.0)):
        measure(service.store, step, value)
    row = ["loss/text", "raw", "nats/token", "3", "10", "2", "5", "2", "steps"]
    assert row in evalsvc("history run-a --newest").cells


def test_renaming_and_deleting(evalsvc: Shell, service: Any) -> None:
    """Where the service says `cancel=true`, which is no word of the command line, the option is named."""
    enter(service.store, submission(5), suite())
    enter(service.store, submission(10))
    assert evalsvc("runs run-a --name run-z").out == "run run-a is renamed to run-z\n"
    for name, deleted in (
        ("run-z@5", "checkpoint run-z@5 is deleted: 1 evaluation, 0 values, 0 artifacts, 0 bytes of files\n"),
        ("run-z", "run run-z is deleted: 1 checkpoint, 0 evaluations, 0 values, 0 artifacts, 0 bytes of files\n"),
    ):
        if "@" in name:
            refused = evalsvc(f"delete {name} --yes")
            assert (refused.code, "--cancel" in refused.err) == (2, True)
        assert evalsvc(f"delete {name} --yes --cancel").out == deleted


def test_a_base_is_set_and_shown(evalsvc: Shell, service: Any, weights: Path) -> None:
    evalsvc(f"submit run-a 25 {weights}")
    assert evalsvc("runs run-b --base run-a@25").out == "base of run-b: run-a step 25 raw (checkpoint 1)\n"
    assert "base: run run-a, step 25, variant raw, named yes, checkpoint 1" in evalsvc("runs run-b").out


class TestCheckpoints:
    @pytest.fixture(autouse=True)
    def posted(self, service: Any) -> None:
        enter(service.store, submission(5), suite())
        enter(service.store, submission(10, variant="ema"))
        enter(service.store, submission(5, run="run-b"))

    def test_they_are_listed_with_their_evaluations(self, evalsvc: Shell) -> None:
        shown = evalsvc("checkpoints")
        assert [row[0] for row in shown.cells if "@" in "".join(row)] == ["run-a@5", "run-a@10:ema", "run-b@5"]
        assert "quick queued" in shown.out
        assert "run-a@5" not in evalsvc("checkpoints run-a --from 6").out
        found = evalsvc("checkpoints --state queued --format json").json
        assert [checkpoint["id"] for checkpoint in found["checkpoints"]] == [1]
        assert "the first 1 are shown" in evalsvc("checkpoints --limit 1").err

    def test_a_result_is_a_file_that_compare_reads(self, evalsvc: Shell, service: Any) -> None:
        warning = {"code": "left_out", "metric": "loss/x", "message": "too few"}
        evaluate_whole(service.store, metric(2.0), warnings=[warning])
        shown = evalsvc("checkpoints run-a@5 --result")
        assert ("run 'run-a' step 5: quick succeeded" in shown.out, "loss/text" in shown.out) == (True, True)
        assert "loss/x: not measured by quick: too few" in evalsvc("checkpoints run-a@5").out
        assert evalsvc("checkpoints run-a@5 --result --format json --output a.json").code == 0
        compared = evalsvc("compare a.json a.json")
        assert (compared.code, "loss/text" in compared.out) == (0, True), compared.err


def test_a_plan_is_set_and_shown(evalsvc: Shell, service: Any) -> None:
    assert "run run-a has no suite in its plan" in evalsvc("plan run-a --none").out
    said = evalsvc("plan run-a loss/500 text-quick@1000..9000/1000 --when-behind newest")
    assert ["loss", "500"] in said.cells
    assert ["text-quick", "1,000", "1000", "9000"] in said.cells
    assert said.out.endswith("when behind: newest\n")
    assert evalsvc("plan run-a").out == said.out
    assert evalsvc("plan run-a --format json").json["suites"][0]["every"] == 500
    limited = evalsvc("plan run-a loss --when-behind refuse --at-most 3").out
    assert limited.endswith("when behind: refuse, while 3 other steps wait\n")


@pytest.mark.parametrize(
    ("text", "planned"),
    [
        ("loss", PlannedSuite(suite="loss", every=1)),
        ("loss/500", PlannedSuite(suite="loss", every=500)),
        ("my.suite@5..", PlannedSuite(suite="my.suite", every=1, first=5)),
        ("loss@5..10/5", PlannedSuite(suite="loss", every=5, first=5, last=10)),
    ],
)
def test_a_planned_suite(text: str, planned: PlannedSuite) -> None:
    assert parse_planned(text) == planned
