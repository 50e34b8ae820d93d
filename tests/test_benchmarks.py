"""Benchmarks run as a person runs them, in small. They are held to what they compare, never to how fast it is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def last_line(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_both_sides_of_the_loss_compute_the_same() -> None:
    """A change of the task's context once left the benchmark unable to start."""
    document = last_line("loss")
    assert len(document["ratios"]) >= 2
    assert document["losses"]["ours"] == pytest.approx(document["losses"]["theirs"], rel=1e-5)


def test_both_sides_of_sampling_choose_the_same_codes() -> None:
    document = last_line("sampling")
    assert len(document["ratios"]) >= 2
    assert document["equal_greedy_codes"] == 1.0


def test_both_sides_of_text_score_the_same() -> None:
    document = last_line("text")
    assert len(document["ratios"]) >= 2
    assert document["difference"] < 1e-4
