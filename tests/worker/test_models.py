import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from worker_stages import LAYOUT, MODEL, count_loads, ignore, planned, refused, run_stage, virtual_of

from evalsvc.checkpoints.expression import digest_of
from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.config import Settings
from evalsvc.messages import ShardRequest, Stage
from evalsvc.models import loading
from evalsvc.spec.suite import Suite
from evalsvc.worker import models
from evalsvc.worker.context import ShardContext
from evalsvc.worker.local import run_suite
from evalsvc.worker.shard import run_shard


def test_the_model_is_loaded_once_for_all_shards(
    checkpoint: CheckpointRef, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes longer than a shard; the digest that the first shard finds must not load it again."""
    loads = count_loads(monkeypatch)
    first = run_stage(checkpoint, suite, "run")
    assert first.error is None
    known = replace(checkpoint, sha256=first.provenance["checkpoint_sha256"])
    assert run_stage(known, suite, "run").error is None
    assert len(loads) == 1
    other = replace(suite.tasks[0], parameters={**suite.tasks[0].parameters, "dtype": "bfloat16"})
    run_suite(Suite("s", "", (other,)), checkpoint, lambda *now: None)
    assert len(loads) == 2


@pytest.mark.parametrize("stage", ["plan", "run"])
@pytest.mark.parametrize(
    ("harm", "code", "fragment"),
    [
        (lambda path: path.unlink(), "checkpoint_gone", "was deleted before it was evaluated; post it again"),
        (lambda path: path.write_bytes(b"x" * 7), "checkpoint_changed", "has 7 bytes"),
        (lambda path: os.utime(path, (1, 1)), "checkpoint_changed", "bytes of 1970-01-01 00:00:01 UTC, but was posted"),
    ],
)
def test_a_checkpoint_that_is_not_the_posted_one(
    request: pytest.FixtureRequest, suite: Suite, weights: Path, stage: Stage, harm: Any, code: str, fragment: str
) -> None:
    checkpoint, virtual = (request.getfixturevalue(name) for name in ("checkpoint", "virtual"))
    payloads = planned(checkpoint, suite)[:1]
    harm(weights)
    for reference, label in ((checkpoint, "run-a step 2: "), (virtual, "run-v step 7: run-a step 2: ")):
        result = run_shard(ShardRequest(suite.tasks[0], stage, reference, payloads), ignore, Settings.load())
        assert refused(result, code, fragment).startswith(label)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_replaced_while_it_is_read(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What is half old and half new fails in any way or in none; that it was replaced must be said."""
    load = loading.load_model

    def load_meanwhile(path: Path, *given: Any, **named: Any) -> Any:
        if when == "before":
            weights.write_bytes(b"something else")
        model = load(path, *given, **named)
        os.utime(path, (1, 1))
        return model

    monkeypatch.setattr(loading, "load_model", load_meanwhile)
    refused(run_stage(checkpoint, suite, "run"), "checkpoint_changed")


def test_hash_and_weights_are_of_one_file(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same size and time that takes the name between hashing and loading, and gives it back."""
    load, digest = loading.load_model, hash_files(weights)

    def load_meanwhile(path: Path, *given: Any, **named: Any) -> Any:
        weights.parent.rename(weights.parent.with_name("kept"))
        weights.parent.mkdir()
        weights.write_bytes(b"another file")
        model = load(path, *given, **named)
        weights.unlink()
        weights.parent.rmdir()
        weights.parent.with_name("kept").rename(weights.parent)
        return model

    monkeypatch.setattr(loading, "load_model", load_meanwhile)
    result = run_stage(replace(checkpoint, model={**MODEL, "precision": "fp32"}), suite, "run")
    assert result.error is None
    assert result.provenance["checkpoint_sha256"] == digest


def test_a_checkpoint_without_identity_that_goes_away_while_it_is_read(
    checkpoint: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: Path) -> str:
        path.unlink()
        return hash_files(path)

    monkeypatch.setattr(models, "hash_files", vanish)
    error = run_stage(replace(checkpoint, identity=None), suite, "run").error
    assert error.code in ("checkpoint_gone", "checkpoint_not_found")
    assert error.message.startswith("run-a step 2: ")


def test_another_digest_than_the_posted_one(checkpoint: CheckpointRef, virtual: CheckpointRef, suite: Suite) -> None:
    """Of a checkpoint or of a parent; a model that is loaded already must not hide it."""
    parents = dict(virtual.virtual.parents)
    parents["run-a@3"] = replace(parents["run-a@3"], sha256="0" * 64)
    wrong = replace(checkpoint, sha256="0" * 64), virtual_of(virtual.path, parents)
    words = f"expected {'0' * 64}", f"run-a step 3: {parents['run-a@3'].path} has sha256"
    for right, other, fragment in zip((checkpoint, virtual), wrong, words, strict=True):
        for _ in range(2):
            refused(run_stage(other, suite, "run"), "checkpoint_changed", fragment)
            assert run_stage(right, suite, "run").error is None


def test_a_virtual_checkpoint_has_the_numbers_of_a_file_with_its_tensors(
    virtual: CheckpointRef, suite: Suite, tmp_path: Path
) -> None:
    parents = [torch.load(parent.path, weights_only=True) for parent in virtual.virtual.parents.values()]
    first, second = (content.get("state_dict", content) for content in parents)
    torch.save({name: 0.75 * first[name] + 0.25 * second[name] for name in first}, tmp_path / "plain.pt")
    file = CheckpointRef(str(tmp_path / "plain.pt"), model=MODEL, layout=LAYOUT)
    found, expected = (run_suite(suite, reference, lambda *now: None).model_dump() for reference in (virtual, file))
    assert len(found["metrics"]) > 10
    for metric, plain in zip(found["metrics"], expected["metrics"], strict=True):
        assert metric["value"] == pytest.approx(plain["value"], rel=1e-6)
        assert metric["protocol"] == plain["protocol"], "how the weights came about is not how they were measured"
    digests = found["provenance"]["pairs"]["shards"][0]["parents_sha256"]
    assert digests == {name: hash_files(Path(parent.path)) for name, parent in virtual.virtual.parents.items()}
    assert found["checkpoint"]["sha256"] == digest_of(virtual.virtual.expression, digests)


def test_a_parent_replaced_while_the_weights_are_computed(
    virtual: CheckpointRef, suite: Suite, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the tensors from one file and half from another is a model that never was."""
    load = models.load_virtual
    meanwhile = lambda *given, **named: weights.write_bytes(b"something else") and load(*given, **named)  # noqa: E731
    monkeypatch.setattr(models, "load_virtual", meanwhile)
    message = refused(run_stage(virtual, suite, "run"), "checkpoint_changed")
    assert message.startswith("run-v step 7: run-a step 2: ")


def test_a_virtual_base_is_loaded_beside_the_checkpoint(
    virtual: CheckpointRef, checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    context = ShardContext(checkpoint, Settings.load(), ignore, virtual)
    found = {context.digest(), context.base.digest()}
    for _ in range(2):
        for each in (context, context.base):
            each.model(dtype="float32", rotary_inv_freq_dtype="auto")
    assert len(loads) == 1
    assert {context.digest(), context.base.digest()} == found, "known before it is loaded, and the same afterwards"
    assert len(found) == 2
