import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worker_stages import LAYOUT, MODEL, virtual_of

from evalsvc.checkpoints.reference import CheckpointRef, identify
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker import context
from evalsvc.worker.models import ModelCache


@pytest.fixture(autouse=True)
def _worker(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own, as it were: one thread, no model loaded."""
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    monkeypatch.setattr(context, "_models", ModelCache())


@pytest.fixture
def weights(open_lm_case: Path, tmp_path: Path) -> Path:
    path = tmp_path / "epoch_1.pt"
    path.write_bytes((open_lm_case / "checkpoints" / "epoch_1.pt").read_bytes())
    return path


@pytest.fixture
def checkpoint(weights: Path) -> CheckpointRef:
    return CheckpointRef(str(weights), identify(weights), model=MODEL, layout=LAYOUT, label="run-a step 2")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    records = [{"text_ids": [1, 2, 3], "image_codes": [4, 5]}, {"text_ids": [7, 8]}, {"text_ids": [9, 9, 9]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tasks = [
        {"kind": "loss", "name": "pairs", "data": "data.jsonl", "shards": 2},
        {"kind": "loss", "name": "missing", "data": "none.jsonl"},
        {"kind": "loss", "name": "few", "data": "data.jsonl", "limit": 2},
    ]
    return parse_suite({"tasks": tasks}, "small", tmp_path)


@pytest.fixture
def virtual(checkpoint: CheckpointRef, tmp_path: Path) -> CheckpointRef:
    """A quarter of the way from the checkpoint to another one, with nothing known of either file but its stat."""
    tensors = torch.load(checkpoint.path, weights_only=True)["state_dict"]
    torch.manual_seed(0)
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
    other = {name: tensors[name] if "inv_freq" in name else tensor for name, tensor in moved.items()}
    torch.save(other, tmp_path / "other.pt")
    second = replace(checkpoint, path=str(tmp_path / "other.pt"), identity=identify(tmp_path / "other.pt"))
    parents = {"run-a@2": checkpoint, "run-a@3": replace(second, label="run-a step 3")}
    return virtual_of("lerp(run-a@2, run-a@3, 0.25)", parents)
