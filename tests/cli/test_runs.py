"""`evalsvc rename-run` and `evalsvc delete-run`."""

from typing import Any

from console import Command
from queue_steps import enter, submission


def test_renaming_and_deleting(command: Command, service: Any) -> None:
    enter(service.store, submission(5))
    assert command("rename-run", "run-a", "run-z").out == "run run-a is called run-z\n"
    asked = command("delete-run", "run-z")
    would = "run run-z with 1 checkpoints would be deleted for good"
    assert (asked.code, asked.err) == (2, f"error: {would}; give --yes if that is meant [invalid_request]\n")
    counts = "1 checkpoints, 0 evaluations, 0 values, 0 artifacts, 0 bytes of files"
    assert command("delete-run", "run-z", "--yes").out == f"run run-z is deleted: {counts}\n"
    assert "no run is named 'run-z'" in command("delete-run", "run-z", "--yes").err
