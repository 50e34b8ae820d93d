"""`evalsvc verify` of a checkpoint: what is asked for, and what the exit code says."""

import json
from collections.abc import Sequence

import pytest
from console import Command

from evalsvc.miniature import ROOT
from evalsvc.verify import checkpoint
from evalsvc.verify.agreement import Agreement, Finding
from evalsvc.verify.checkpoint import VerifyRequest
from evalsvc.verify.recorded import RecordedTask

WEIGHTS = str(ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt")
HERE = ("verify", "--checkpoint", WEIGHTS, "--suite", "miniature")


def test_weights_are_verified_without_a_service(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], VerifyRequest]] = []

    def verify_tasks(tasks: Sequence[RecordedTask], request: VerifyRequest) -> list[Finding]:
        seen.append(([task.spec.name for task in tasks], request))
        assert all(task.checkpoint.path == WEIGHTS and not task.items for task in tasks)
        return [Agreement.of_numbers("digits: losses of 12 items", "model by open_lm", 1.0, 2.0, 0.1)]

    monkeypatch.setattr(checkpoint, "verify_tasks", verify_tasks)
    options = ("--engine", "model=open_lm", "--engine", "scoring=hflm", "--n", "12", "--device", "cpu")
    result = command(*HERE, *options, "--output", "-")
    assert result.code == 1
    assert json.loads(result.out)["agrees"] is False
    [(tasks, request)] = seen
    assert "digits" in tasks
    assert (list(request.engines), request.n) == ([("model", "open_lm"), ("scoring", "hflm")], 12)
    assert request.settings.device == "cpu"


def test_an_unknown_engine_is_refused(command: Command) -> None:
    result = command(*HERE, "--engine", "model=openlm")
    assert result.code == 2
    assert "open_lm" in result.err
