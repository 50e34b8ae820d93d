"""A small checkpoint, and single stages of a suite on it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evalsvc.checkpoints.expression import parse_expression
from evalsvc.checkpoints.reference import CheckpointRef, Virtual
from evalsvc.config import Settings
from evalsvc.messages import PlanResult, ShardDocument, ShardRequest, ShardResult, Stage
from evalsvc.models import loading
from evalsvc.spec.suite import Suite
from evalsvc.worker.shard import run_shard

MODEL = {"hidden_dim": 16, "n_layers": 2, "n_heads": 4, "seq_len": 64, "vocab_size": 112}
MODEL |= {"post_embed_norm": False, "weight_tying": False}
LAYOUT = {"text": {"size": 80}, "image": {"offset": 96, "size": 16}}


def ignore(done: int) -> None:
    pass


def run_stage(checkpoint: CheckpointRef, suite: Suite, stage: Stage = "plan") -> ShardResult:
    task = suite.tasks[0]
    if stage == "plan":
        return run_shard(ShardRequest(task, "plan", checkpoint), ignore, Settings.load())
    return run_shard(ShardRequest(task, stage, checkpoint, planned(checkpoint, suite)[:1]), ignore, Settings.load())


def planned(checkpoint: CheckpointRef, suite: Suite) -> Sequence[ShardDocument]:
    plan = run_stage(replace(checkpoint, identity=None), suite).output
    assert isinstance(plan, PlanResult)
    return plan.shards


def refused(result: ShardResult, code: str, *words: str) -> str:
    """The message of a stage that failed, after checking its code, and that the message has these words."""
    assert result.error is not None
    assert result.error.code == code
    for part in words:
        assert part in result.error.message, result.error.message
    return result.error.message


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    loads: list[int] = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *given, **named: loads.append(1) or load(*given, **named))
    return loads


def turned(checkpoint: CheckpointRef, path: Path) -> tuple[CheckpointRef, list[float]]:
    tensors = dict(torch.load(checkpoint.path, weights_only=True)["state_dict"])
    tensors |= {name: 2 * tensor for name, tensor in tensors.items() if "inv_freq" in name}
    torch.save(tensors, path)
    frequencies = tensors["layers.0.attention.pos_embed.inv_freq"].tolist()
    return replace(checkpoint, path=str(path), label="turned"), frequencies


def virtual_of(text: str, parents: Mapping[str, CheckpointRef]) -> CheckpointRef:
    return CheckpointRef(text, layout=LAYOUT, label="run-v step 7", virtual=Virtual(parse_expression(text), parents))
