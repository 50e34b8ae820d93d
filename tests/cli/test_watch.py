"""`evalsvc watch`: what it prints, and how it ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from console import Command

from evalsvc.miniature import ROOT

pytestmark = pytest.mark.usefixtures("child_process")

MINIATURE = ROOT / "runs" / "pretrained" / "checkpoints"
STEPS = [0, 10, 20, 80, 300, 3000]
OPTIONS = ("--run", "run-a", "--settle", "0.1", "--every", "0.1")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def url(service: Any) -> str:
    """The address of a service by whose plan every step of the run is evaluated."""
    url = os.environ["EVALSVC_URL"]
    plan = {"suites": [{"suite": "loss", "every": 1}]}
    httpx2.put(f"{url}/v1/runs/run-a/plan", json=plan).raise_for_status()
    return url


def test_once_posts_what_is_there_and_ends(tmp_path: Path, command: Command, url: str) -> None:
    folder = shutil.copytree(MINIATURE, tmp_path / "checkpoints")
    (folder / "optimizer_1.pt").write_bytes(b"x")
    first = command("watch", str(folder), *OPTIONS, "--once")
    lines = first.out.splitlines()
    assert (first.code, first.err, len(lines)) == (0, "", len(STEPS))
    assert lines[3] == "epoch_3.pt: step 80 raw is checkpoint 4; loss"
    again = command("watch", str(folder), *OPTIONS, "--once")
    assert (again.code, again.out) == (0, "")
    assert again.err == f"nothing to post: the service has all 6 checkpoints in {folder}\n"


def test_once_says_what_was_refused_by_its_exit_code(tmp_path: Path, command: Command, url: str) -> None:
    (folder := tmp_path / "checkpoints").mkdir()
    shutil.copy(MINIATURE / "epoch_1.pt", folder)
    assert command("watch", str(folder), *OPTIONS, "--once").code == 0
    shutil.copy(MINIATURE / "epoch_2.pt", folder / "epoch_1.pt")
    refused = command("watch", str(folder), *OPTIONS, "--once", "--steps-per-epoch", "10")
    assert "epoch_1.pt is not posted: run 'run-a' has a checkpoint at step 10" in refused.err
    assert ("--replace" in refused.err, refused.code) == (True, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_quietly_by_a_signal(tmp_path: Path, url: str, number: int) -> None:
    (folder := tmp_path / "checkpoints").mkdir()
    shutil.copy(MINIATURE / "epoch_1.pt", folder)
    line = [sys.executable, "-m", "evalsvc.cli", "watch", str(folder), *OPTIONS]
    watcher = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("epoch_1.pt: step 10 raw is checkpoint 1")
    watcher.send_signal(number)
    assert watcher.communicate(timeout=30) == ("", "")
    assert watcher.returncode == 0
