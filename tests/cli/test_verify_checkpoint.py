"""`evalsvc verify` of a checkpoint: what is asked for, and what the exit code says."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from console import Command

from evalsvc.miniature import ROOT
from evalsvc.verify import recorded
from evalsvc.verify.agreement import Agreement, Finding
from evalsvc.verify.recorded import RecordedTask, VerifyRequest

WEIGHTS = str(ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt")
HERE = ("verify", "--checkpoint", WEIGHTS, "--suite", "miniature")


def test_weights_are_verified_without_a_service(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[list[str], VerifyRequest]] = []

    def verify_tasks(tasks: Sequence[RecordedTask], request: VerifyRequest) -> list[Finding]:
        seen.append(([task.spec.name for task in tasks], request))
        assert all(task.checkpoint.path == WEIGHTS and not task.metrics for task in tasks)
        return [Agreement.of_numbers("fid64 of 12 images of digits", "torch-fidelity", 1.0, 2.0, 0.1)]

    monkeypatch.setattr(recorded, "verify_tasks", verify_tasks)
    options = ("--metric", "digits/fid64", "--n", "12", "--files", str(tmp_path / "new"), "--device", "cpu")
    result = command(*HERE, *options, "--output", "-")
    assert result.code == 1
    assert json.loads(result.out)["agrees"] is False
    [(tasks, request)] = seen
    assert "digits" in tasks
    assert (request.metrics, request.n, request.output) == (("digits/fid64",), 12, tmp_path / "new")
    assert request.settings.device == "cpu"


def test_a_folder_in_use_is_refused_before_anything_is_sampled(command: Command, tmp_path: Path) -> None:
    result = command(*HERE, "--files", str(tmp_path))
    assert (result.code, result.out) == (2, "")
    assert "exists; name a new folder" in " ".join(result.err.split())


def test_an_unknown_metric_is_refused(command: Command) -> None:
    result = command(*HERE, "--metric", "digit/fid64")
    assert result.code == 2
    assert "digits/" in result.err
