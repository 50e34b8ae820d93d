"""`evalsvc items`."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite

ITEMS = [{"index": index, "nll": 1.5 * index, "text": "a" * 100, "ids": [index]} for index in range(30)]


@pytest.fixture(autouse=True)
def evaluated(command: Command, service: Any) -> None:
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, metric(2.0), items=ITEMS)
    enter(service.store, submission(10), suite())


def test_items_are_shown_in_part_and_written_whole(command: Command, tmp_path: Path) -> None:
    shown = command("items", "1", "--limit", "3").out
    assert "loss-0: 30 items" in shown
    assert ["index", "nll", "text", "ids"] in [line.split() for line in shown.splitlines()]
    assert "the first 3 are shown; --format csv --output FILE writes all" in shown
    assert "a" * 61 not in shown, "a long text would hide the other columns"
    written = command("items", "1", "--format", "csv", "--output", "items.csv")
    assert (written.code, written.out) == (0, ""), written.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "items.csv").read_text())))
    assert (len(rows), rows[2]["task"], rows[2]["nll"], rows[2]["ids"]) == (30, "loss-0", "3.0", "[2]")
    found = json.loads(command("items", "1", "--column", "nll", "--format", "json").out)
    assert found["items"]["loss-0"][1] == {"nll": 1.5}


def test_what_is_not_there_has_near_misses(command: Command) -> None:
    assert command("items", "2").out == "evaluation 2 has no results per item; its state is queued\n"
    assert "did you mean 'nll'" in command("items", "1", "--column", "nl").err
    assert "did you mean 'loss-0'" in command("items", "1", "--task", "loss-1").err
    assert "there is no evaluation 9" in command("items", "9").err
