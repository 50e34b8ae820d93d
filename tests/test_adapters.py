"""A run of LoRA training, watched by a real service from its first adapter to a curve."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters import write_by_peft
from service_process import ServiceProcess


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_process: None) -> Iterator[ServiceProcess]:
    for name, value in {"ROOTS": str(tmp_path), "DEVICES": "cpu", "THREADS": "1"}.items():
        monkeypatch.setenv(f"EVALSVC_{name}", value)
    records = [{"text_ids": [start * step % 96 for step in range(1, 20)]} for start in range(1, 9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with ServiceProcess(tmp_path / "service") as running:
        running.put_suite("losses", {"kind": "loss", "data": str(tmp_path / "data.jsonl")})
        yield running


def watch(service: ServiceProcess, folder: Path) -> str:
    command = [sys.executable, "-P", "-m", "evalsvc.cli", "watch", str(folder), "--run", "tuned", "--suite", "losses"]
    done = subprocess.run([*command, "--once", "--settle", "0.1", "--url", service.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_the_folders_of_a_trainer_become_a_curve(service: ServiceProcess, tmp_path: Path) -> None:
    """With the numbers of the merged models. The trainer deletes its folders; their copies stay until they are read."""
    base, trained = tmp_path / "base", tmp_path / "tuned"
    for step in (500, 1000, 1500):
        folder, merged = trained / f"checkpoint-{step}", tmp_path / "merged" / f"step-{step}"
        write_by_peft("llama", base, folder, step, target_modules="all-linear").save_pretrained(merged)
        (folder / "optimizer.pt").write_bytes(b"state")
    said = watch(service, trained)
    assert all(f"checkpoint-{step}: step {step} raw is checkpoint" in said for step in (500, 1000, 1500))
    run = service.request("GET", "/v1/runs/tuned")
    posted = {item["step"]: item["evaluations"] for item in run["checkpoints"]}
    assert sorted(posted) == [0, 500, 1000, 1500]
    assert "the service has all 3 checkpoints" in watch(service, trained)
    shutil.rmtree(trained)
    assert [service.wait(posted[step][0]["id"])["state"] for step in (500, 1000, 1500)] == ["succeeded"] * 3
    found = service.history("tuned")
    assert sorted({step for _, step in found}) == [500, 1000, 1500]
    for step in (500, 1000, 1500):
        [evaluation] = service.post("merged", step, tmp_path / "merged" / f"step-{step}", ["losses"])
        assert service.wait(evaluation)["state"] == "succeeded"
    expected = service.history("merged")
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(expected.values())) > 6
    start = next(item for item in run["checkpoints"] if item["step"] == 0)
    assert service.request("GET", f"/v1/checkpoints/{start['id']}")["sha256"] is not None, "found by the worker"
