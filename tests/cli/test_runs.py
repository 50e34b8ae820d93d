"""`evalsvc show`, `evalsvc rename-run` and `evalsvc delete-run`."""

import json
from typing import Any

from console import Command
from queue_steps import enter, submission, suite


def test_a_run_and_a_checkpoint_are_shown(command: Command, service: Any) -> None:
    enter(service.store, submission(5, tags={"lr": "1e-4"}, tokens_seen=640), suite())
    enter(service.store, submission(10, variant="ema"))
    lines = [" ".join(line.split()) for line in command("show", "run-a").out.splitlines()]
    assert "base: run run-a, step 0, variant raw, named no" in lines
    assert "id step variant uri tokens_seen created_at evaluations" in lines
    assert [line.split()[:3] for line in lines if line[:1].isdigit()] == [["1", "5", "raw"], ["2", "10", "ema"]]
    shown = command("show", "run-a@5").out.splitlines()
    assert {"step: 5", 'tags: {"lr": "1e-4"}', "in_use: yes", "sha256:"} <= set(shown)
    assert ["1", "quick", "queued"] in [line.split() for line in shown]
    assert json.loads(command("show", "run-a@10:ema", "--json").out)["variant"] == "ema"


def test_what_is_not_there_is_not_shown(command: Command, service: Any) -> None:
    enter(service.store, submission(5))
    assert "no checkpoint is named 'run-a@6'; did you mean 'run-a@5'?" in command("show", "run-a@6").err
    assert "no run is named 'run-b'; did you mean 'run-a'?" in command("show", "run-b").err


def test_renaming_and_deleting(command: Command, service: Any) -> None:
    enter(service.store, submission(5))
    assert command("rename-run", "run-a", "run-z").out == "run run-a is called run-z\n"
    asked = command("delete-run", "run-z")
    would = "run run-z with 1 checkpoints would be deleted for good"
    assert (asked.code, asked.err) == (2, f"error: {would}; give --yes if that is meant [invalid_request]\n")
    counts = "1 checkpoints, 0 evaluations, 0 values, 0 artifacts, 0 bytes of files"
    assert command("delete-run", "run-z", "--yes").out == f"run run-z is deleted: {counts}\n"
    assert "no run is named 'run-z'" in command("delete-run", "run-z", "--yes").err
