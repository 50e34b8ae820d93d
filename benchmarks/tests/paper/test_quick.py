"""All findings in the shortest form, as a person computes them: interrupted, resumed, drawn and checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import paper
import pytest
from study.page import agreements

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "benchmarks" / "paper"


def command(work: Path, *options: str) -> list[str]:
    return [sys.executable, str(PAPER / "paper.py"), "--quick", "--work", str(work), *options]


def interrupted(work: Path, environment: dict[str, str]) -> set[Path]:
    """Kill the command once a few trainings have ended, and return the files of the checkpoints so far."""
    with (work.with_suffix(".log")).open("wb") as stream:
        process = subprocess.Popen(command(work), env=environment, stdout=stream, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while len(list(work.glob("trainings/*/done"))) < 3:
        assert process.poll() is None, work.with_suffix(".log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return set(work.glob("trainings/*/checkpoints/epoch_*"))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("child_process")
def test_all_findings_are_computed_once_although_the_command_is_killed(inception_path: Path, tmp_path: Path) -> None:
    """After SIGKILL, trainings and the service end by themselves, and the same command finishes the rest."""
    work = tmp_path / "work"
    environment = os.environ | {"EVALSVC_ASSETS": str(inception_path.parent), "PYTHONPATH": str(ROOT)}
    times = {path: path.stat().st_mtime_ns for path in interrupted(work, environment)}
    page = tmp_path / "paper.md"
    done = subprocess.run(command(work, "--write", str(page)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {path: path.stat().st_mtime_ns for path in times if path.exists()}
    assert kept == times, "checkpoints of before are not written again"

    results = json.loads((work / "results.json").read_text())
    assert set(results["findings"]) == {finding.name for finding in paper.FINDINGS}
    for content in results["findings"].values():
        for figure in content["figures"]:
            file = work / "figures" / figure["file"]
            assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
            assert file.suffix == ".png" or file.read_text().startswith("<svg")
            assert f"images/paper/quick/{file.name}" in page.read_text()
    assert {*agreements(results).values()} == {"not measured"}, "what is quick shows that all of it works"
    assert results["findings"]["fig_4"]["numbers"]["identity_error"] < 1e-6

    check = [sys.executable, str(PAPER / "check.py"), "--work", str(work), "--data", str(ROOT / "evalsvc/miniature")]
    checked = subprocess.run([*check, "--limit", "24"], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("equal") == 5


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("child_process", "reference_models")
def test_the_real_scale_computes_its_findings_on_any_llama(shared: Path, tmp_path: Path) -> None:
    """A tiny Llama in a Hugging Face folder and a random twin, four steps each."""
    from study.computing import Computation
    from study.material import real_material
    from study.scales import REAL, Training
    from tiny_llama import write_tiny_llama

    write_tiny_llama(tmp_path / "tiny")
    training = Training(4, (0, 2), batch=2, learning_rate=1e-3, warm_up=1)
    scale = replace(REAL, main=training, seeds=(3,), questions=20, sequences=8, completion_tokens=4, ema=(0.5,))
    items = shared / "golden" / "text_tasks"
    material = real_material(tmp_path / "material", tmp_path / "tiny", items, scale.benchmarks)
    computation = Computation(scale, tmp_path, material)
    results = computation.compute([finding for finding in paper.FINDINGS if "real" in finding.scales])
    assert set(results["findings"]) == {"fig_3", "fig_4", "table_1"}
    assert results["findings"]["fig_4"]["numbers"]["identity_error"] < 1e-6
    assert (tmp_path / "figures" / "table_1-piqa.svg").read_text().startswith("<svg")
    assert {path.name for path in (tmp_path / "trainings" / "random-3" / "checkpoints").iterdir()} == {
        f"step_{step}{average}" for step in (0, 2, 4) for average in ("", "-ema_0.5")
    }
