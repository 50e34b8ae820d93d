"""`evalsvc status`: what it prints and its exit codes."""

import csv
import io
import json
from typing import Any

import pytest
from console import Command


def test_ready_and_not(command: Command, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = command("status")
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[0].endswith(": ready, database sqlite")
    assert json.loads(command("status", "--format", "json").out)["queue"]["queued"] == 0
    (row,) = csv.DictReader(io.StringIO(command("status", "--format", "csv").out))
    assert (row["status"], json.loads(row["queue"])["queued"]) == ("ready", 0)
    monkeypatch.setattr(service.coordinator, "processes", 0)
    shown = command("status")
    assert (shown.code, "NOT READY" in shown.out) == (1, True)
