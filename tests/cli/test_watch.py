"""`evalsvc watch` as a process: what it prints, how it ends, and that kill -9 neither loses nor doubles a post."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_in_process import app_on_port

from evalsvc.miniature import ROOT

MINIATURE = ROOT / "runs" / "pretrained" / "checkpoints"
STEPS = [0, 10, 20, 80, 300, 3000]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with app_on_port(tmp_path / "data") as (url, _):
        plan = {"suites": [{"suite": "loss", "every": 1}]}
        httpx.put(f"{url}/v1/runs/run-a/plan", json=plan).raise_for_status()
        yield url


def start(folder: Path, url: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "evalsvc.cli", "watch", str(folder), "--run", "run-a", "--url", url]
    return subprocess.Popen(
        [*command, "--settle", "0.1", "--every", "0.1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_DATA_HOME": str(folder.parent / "home")},
    )


def finish(watcher: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its exit code, and what it printed."""
    out, err = watcher.communicate(timeout=60)
    return watcher.returncode, out, err


def posted(url: str) -> list[dict[str, Any]]:
    response = httpx.get(f"{url}/v1/runs/run-a")
    return response.json()["checkpoints"] if response.is_success else []


def test_once_posts_what_is_there_and_ends(tmp_path: Path, url: str) -> None:
    folder = shutil.copytree(MINIATURE, tmp_path / "checkpoints")
    (folder / "optimizer_1.pt").write_bytes(b"x")
    first = start(folder, url, "--once")
    out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (0, "")
    assert len(out.splitlines()) == len(STEPS)
    assert out.splitlines()[3] == "epoch_3.pt: step 80 raw is checkpoint 4; loss"
    again = start(folder, url, "--once")
    assert again.communicate(timeout=60) == ("", "")
    assert again.returncode == 0


def test_once_says_what_was_refused_by_its_exit_code(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(MINIATURE / "epoch_1.pt", folder)
    assert finish(start(folder, url, "--once"))[0] == 0
    shutil.copy(MINIATURE / "epoch_2.pt", folder / "epoch_1.pt")
    refused = start(folder, url, "--once", "--steps-per-epoch", "10")
    assert "epoch_1.pt is not posted: run 'run-a' has a checkpoint at step 10" in refused.communicate(timeout=60)[1]
    assert refused.returncode == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--marker", "done"], "has no {} for the checkpoint's name"),
        (["--step-pattern", "("], "is no regular expression"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    ended = start(tmp_path, "http://127.0.0.1:9", "--once", *options)
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_a_marker_is_for_folders_of_this_machine(tmp_path: Path) -> None:
    """It would be looked for in vain, and nothing ever posted."""
    command = [sys.executable, "-m", "evalsvc.cli", "watch", "s3://bucket/run", "--run", "r", "--marker", "{}.done"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "leave it out" in done.stderr) == (2, True)


def test_a_folder_that_is_not_there_and_a_service_that_is_not(tmp_path: Path) -> None:
    nowhere = start(tmp_path / "nowhere", "http://127.0.0.1:9", "--once")
    assert "nowhere is no folder" in nowhere.communicate(timeout=60)[1]
    folder = shutil.copytree(MINIATURE, tmp_path / "checkpoints")
    alone = start(folder, "http://127.0.0.1:9", "--once")
    assert "no evaluation service answers at http://127.0.0.1:9" in alone.communicate(timeout=60)[1]
    assert (nowhere.returncode, alone.returncode) == (2, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_quietly_by_a_signal(tmp_path: Path, url: str, number: int) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(MINIATURE / "epoch_1.pt", folder)
    watcher = start(folder, url)
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("epoch_1.pt: step 10 raw is checkpoint 1")
    watcher.send_signal(number)
    assert watcher.communicate(timeout=30) == ("", "")
    assert watcher.returncode == 0


def test_killed_at_any_moment_it_neither_loses_nor_doubles_a_post(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    chance = random.Random(7)
    watcher = start(folder, url)
    deadline = time.monotonic() + 60
    for epoch in range(6):
        shutil.copy(MINIATURE / f"epoch_{epoch}.pt", folder)
        # Until something was posted by this one: else a machine that is slow would have it killed while it starts.
        while len(posted(url)) < max(1, epoch - 1) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        watcher.kill()
        watcher.communicate()
        watcher = start(folder, url)
    watcher.kill()
    watcher.communicate()
    assert finish(start(folder, url, "--once"))[0] == 0
    found = posted(url)
    assert sorted(item["step"] for item in found) == STEPS
    assert [len(item["evaluations"]) for item in found] == [1] * len(STEPS)
    assert len({item["sha256"] for item in found}) == len(STEPS)
