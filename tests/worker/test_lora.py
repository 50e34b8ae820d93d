"""Runs of LoRA training: the numbers of the merged model, and one load of the base."""

import json
import os
from pathlib import Path

import pytest
from adapters import write_by_hand, write_by_peft
from tiny_families import write_ours

from evalsvc.checkpoints import adapter
from evalsvc.checkpoints.expression import File, Step, Sum, canonical, digest_of
from evalsvc.checkpoints.reference import CheckpointRef, Virtual, hash_files, identify
from evalsvc.checkpoints.weights import Weights
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker import models
from evalsvc.worker.local import run_suite


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the worker reads and hashes, by the kinds of reading."""
    found: list[str] = []
    read, digest = adapter.read_weights, models.hash_files

    def read_counted(path: Path) -> Weights:
        found.append("read")
        return read(path)

    def hash_counted(path: Path) -> str:
        found.append("hash an adapter" if (path / "adapter_config.json").exists() else "hash")
        return digest(path)

    monkeypatch.setattr(adapter, "read_weights", read_counted)
    monkeypatch.setattr(models, "hash_files", hash_counted)
    monkeypatch.setattr(adapter, "_kept", {})
    return found


@pytest.fixture
def losses(tmp_path: Path) -> Suite:
    records = [{"text_ids": [start * step % 96 for step in range(1, 20)]} for start in range(1, 9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return parse_suite({"tasks": [{"kind": "loss", "data": "data.jsonl", "shards": 2}]}, "losses", tmp_path)


def on_base(base: Path, folder: Path, step: int) -> CheckpointRef:
    expression = Sum(Step("run", 0), File(f"run@{step}"))
    files = {"run@0": base, str(expression.adapter): folder}
    parents = {name: CheckpointRef(str(path), identify(path), label=name) for name, path in files.items()}
    return CheckpointRef(canonical(expression), label=f"step {step}", virtual=Virtual(expression, parents))


def loss_of(suite: Suite, reference: CheckpointRef) -> float:
    result = run_suite(suite, reference, lambda *now: None)
    assert result.errors == {}
    return next(metric.value for metric in result.metrics if metric.name.endswith("/total"))


def test_three_steps_read_the_base_once_and_have_the_losses_of_peft(
    reads: list[str], losses: Suite, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    for step in (1, 2, 3):
        folder, merged = tmp_path / f"checkpoint-{step}", tmp_path / f"merged-{step}"
        write_by_peft("llama", base, folder, step, target_modules="all-linear").save_pretrained(merged)
    values = [loss_of(losses, on_base(base, tmp_path / f"checkpoint-{step}", step)) for step in (1, 2, 3)]
    assert sorted(reads) == ["hash", *["hash an adapter"] * 3, "read"]
    assert len(set(values)) == 3
    for step, value in zip((1, 2, 3), values, strict=True):
        assert value == pytest.approx(loss_of(losses, CheckpointRef(str(tmp_path / f"merged-{step}"))), rel=1e-6)


def test_the_digest_is_of_both(reads: list[str], losses: Suite, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", write_by_hand(tmp_path / "adapter")
    write_ours("llama", base)
    reference = on_base(base, folder, 1)
    assert reference.virtual is not None
    digests = {"run@0": hash_files(base), str(File("run@1")): hash_files(folder)}
    for _ in ("read", "kept"):
        result = run_suite(losses, reference, lambda *now: None)
        assert result.checkpoint.sha256 == digest_of(reference.virtual.expression, digests)
        assert result.provenance["loss"]["parents_sha256"] == digests


def test_another_base_is_read_anew(reads: list[str], losses: Suite, tmp_path: Path) -> None:
    """Also one with the name, the size and the time of the other, which only the kernel tells apart."""
    base, folder, other = tmp_path / "base", write_by_hand(tmp_path / "adapter"), tmp_path / "other"
    write_ours("llama", base)
    write_ours("llama", other, seed=1)
    first, expected = (loss_of(losses, on_base(path, folder, 1)) for path in (base, other))
    assert loss_of(losses, on_base(base, folder, 1)) == first
    weights, content = base / "model.safetensors", (other / "model.safetensors").read_bytes()
    status = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    loss_of(losses, CheckpointRef(str(other)))  # the model of the sum is not in memory any more
    assert loss_of(losses, on_base(base, folder, 1)) == expected != first
