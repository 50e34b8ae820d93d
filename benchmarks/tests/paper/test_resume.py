"""The command, killed at any place: it goes on to the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_trainings import checkpoint_bytes, tiny_recipe

pytestmark = pytest.mark.usefixtures("child_process")

TRAINER = Path(__file__).parents[2] / "paper" / "train.py"
CHANGES: dict[str, Any] = {
    "steps": 40,
    "checkpoint_steps": [0, 5, 11, 23],
    "state_every": 3,
    "ema": [0.5, 0.9],
    "replay": {"share": 0.3, "text": "text.jsonl", "length": 8},
    "caption_drop": 0.2,
}


def command(folder: Path, work: str, *options: str) -> list[str]:
    return [sys.executable, str(TRAINER), str(folder / "recipe.yaml"), "--work", str(folder / work), *options]


def write_recipe(folder: Path, **changes: Any) -> None:
    recipe = tiny_recipe(folder, **{**CHANGES, **changes})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_json()))


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at a random moment of its run, start included, until it is done."""
    write_recipe(tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path, "whole", "--threads", "1"), check=True, env=environment)
    pick, kills = random.Random(0), 0
    log = tmp_path / "parts" / "log.jsonl"
    while kills < 4:
        process = subprocess.Popen(command(tmp_path, "parts", "--threads", "1"), env=environment)
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        deadline = time.monotonic() + 60
        target = begun + pick.randrange(1, 6)
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(log.read_text().splitlines()) >= target:
                break
            time.sleep(0.001)
        time.sleep(pick.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command(tmp_path, "parts", "--threads", "1"), check=True, env=environment)
    assert checkpoint_bytes(tmp_path / "parts") == checkpoint_bytes(tmp_path / "whole")
