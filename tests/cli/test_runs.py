"""`evalsvc runs`."""

import json
from pathlib import Path
from typing import Any

from console import Command
from queue_steps import enter, measure, submission, suite


def test_runs_are_listed(command: Command, service: Any, tmp_path: Path) -> None:
    assert command("runs").out == "no run exists yet; evalsvc submit posts a checkpoint\n"
    enter(service.store, submission(5), suite())
    rows = [line.split()[:3] for line in command("runs").out.splitlines()]
    assert ["run-a", "1", "5"] in rows
    listed = command("runs", "--format", "json", "--output", "runs.json")
    assert (listed.code, listed.out) == (0, "")
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert (run["name"], run["last_step"]) == ("run-a", 5)
    assert command("runs", "--format", "csv").out.splitlines()[0].startswith("name,checkpoints,last_step")


def test_a_run_and_a_checkpoint_are_shown(command: Command, service: Any) -> None:
    enter(service.store, submission(5, tags={"lr": "1e-4"}, tokens_seen=640), suite())
    enter(service.store, submission(10, variant="ema"))
    lines = [" ".join(line.split()) for line in command("runs", "run-a").out.splitlines()]
    assert "base: run run-a, step 0, variant raw, named no" in lines
    assert "id step variant uri tokens seen created evaluations" in lines
    assert [line.split()[:3] for line in lines if line[:1].isdigit()] == [["1", "5", "raw"], ["2", "10", "ema"]]
    shown = command("checkpoints", "run-a@5").out.splitlines()
    assert {"step: 5", 'tags: {"lr": "1e-4"}', "in_use: yes", "sha256:"} <= set(shown)
    assert ["1", "quick", "queued"] in [line.split() for line in shown]
    assert json.loads(command("checkpoints", "run-a@10:ema", "--format", "json").out)["variant"] == "ema"


def test_the_latest_and_the_best_values_are_shown(command: Command, service: Any) -> None:
    for step, value in ((5, 2.0), (10, 3.0)):
        measure(service.store, step, value)
    rows = [line.split() for line in command("history", "run-a", "--newest").out.splitlines()]
    assert ["loss/text", "raw", "nats/token", "3", "10", "2", "5", "2", "steps"] in rows
    assert "did you mean 'loss/text'" in command("history", "run-a", "--newest", "--metric", "loss/txt").err


def test_what_is_not_there_is_not_shown(command: Command, service: Any) -> None:
    enter(service.store, submission(5))
    assert "no checkpoint is named 'run-a@6'; did you mean 'run-a@5'?" in command("checkpoints", "run-a@6").err
    assert "no run is named 'run-b'; did you mean 'run-a'?" in command("runs", "run-b").err


def test_renaming_and_deleting(command: Command, service: Any) -> None:
    enter(service.store, submission(5))
    assert command("runs", "run-a", "--name", "run-z").out == "run run-a is renamed to run-z\n"
    asked = command("delete", "run-z")
    would = "run run-z with 1 checkpoint would be deleted, and standard input is no terminal to ask for confirmation"
    assert (asked.code, asked.err) == (2, f"error: {would}; give --yes [invalid_request]\n")
    counts = "1 checkpoint, 0 evaluations, 0 values, 0 artifacts, 0 bytes of files"
    assert command("delete", "run-z", "--yes").out == f"run run-z is deleted: {counts}\n"
    assert "no run is named 'run-z'" in command("delete", "run-z", "--yes").err


def test_a_refusal_names_the_option(command: Command, service: Any) -> None:
    """The service says `cancel=true`, which is no word of the command line."""
    enter(service.store, submission(5), suite())
    refused = command("delete", "run-a", "--yes")
    assert (refused.code, "delete with --cancel" in refused.err) == (2, True)
    assert command("delete", "run-a", "--yes", "--cancel").code == 0


def test_a_base_is_set_and_shown(command: Command, service: Any, weights: Path) -> None:
    command("submit", "run-a", "25", str(weights))
    said = "base of run-b: run-a step 25 raw (checkpoint 1)\n"
    assert command("runs", "run-b", "--base", "run-a@25").out == said
    assert "base: run run-a, step 25, variant raw, named yes, checkpoint 1" in command("runs", "run-b").out
    assert command("runs", "run-a", "--base", "run-a@0").code == 2, "step 0 is not posted"
    assert "'25' is not a checkpoint; write RUN@STEP" in command("runs", "run-a", "--base", "25").err
    assert "--base is given without a run; leave --base out" in command("runs", "--base", "run-a@0").err
