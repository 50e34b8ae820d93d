import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
import torch
from worker_stages import LAYOUT, MODEL, count_loads, ignore, planned, refused, run_stage, virtual_of

from evalsvc.checkpoints.expression import digest_of
from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.config import Settings
from evalsvc.errors import Cancelled
from evalsvc.installation import pip_install
from evalsvc.messages import ShardRequest, ShardResult, Stage
from evalsvc.models import loading
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.tasks.task import Context, Plan, Shard, Task, TaskResult, Work
from evalsvc.worker import models
from evalsvc.worker import shard as shard_module
from evalsvc.worker.context import ShardContext
from evalsvc.worker.local import run_suite
from evalsvc.worker.shard import run_shard


class Panic(BaseException):
    """As libraries in Rust raise it, of a class that cannot be imported."""


class Faulty(Task):
    kind: ClassVar[str] = "faulty"


@dataclass(frozen=True)
class Nothing:
    number: int = 0


class FaultyWork(Work[Faulty, Shard, Nothing]):
    error: ClassVar[BaseException]
    items: ClassVar[list[dict[str, Any]]] = []
    output: ClassVar[Any] = None

    def plan(self, context: Context) -> Plan[Shard]:
        raise self.error

    def run(self, context: Context, shard: Shard) -> Nothing:
        if self.output is None:
            context.dataset(7)
        return self.output

    def merge(self, context: Context, shards: Sequence[Shard], outputs: Sequence[Nothing]) -> TaskResult:
        assert len(list(outputs)) == len(shards) or not outputs  # they are read when they are asked for
        return TaskResult([], self.items)


Run = Callable[..., ShardResult]


@pytest.fixture
def faulty(checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a stage of a task that raises, returns and merges what it is told."""

    def run(stage: Stage = "plan", *outputs: bytes, **told: Any) -> ShardResult:
        for name, value in told.items():
            monkeypatch.setattr(FaultyWork, name, value, raising=False)
        monkeypatch.setattr(shard_module, "build_task", lambda spec: Faulty(name="faulty"))
        monkeypatch.setattr(shard_module, "work_of", FaultyWork)
        request = ShardRequest(TaskSpec("faulty", "faulty", {}), stage, checkpoint, [{"units": 1}], outputs)
        return run_shard(request, ignore, Settings.load())

    return run


@pytest.mark.parametrize(
    ("error", "code", "fragment"),
    [
        (Cancelled("stopped by you"), "cancelled", "stopped by you"),
        (MemoryError(), "out_of_memory", "lower EVALSVC_BATCH_TOKENS"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "out_of_memory", "(CUDA out of memory. Tried to)"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), "out_of_memory", "device with more"),
        (Panic("index out of bounds"), "internal_error", "Panic: index out of bounds"),
        (RuntimeError("'[2]' is invalid"), "internal_error", "Error: '[2]' is invalid at evalsvc/tasks/stages.py:"),
    ],
)
def test_every_exception_becomes_a_result(faulty: Run, error: BaseException, code: str, fragment: str) -> None:
    result = faulty(error=error)
    refused(result, code, fragment)
    assert result.output is None
    assert result.provenance["host"]


def test_a_bug_names_the_innermost_line_and_leaves_its_trace_in_the_log(
    faulty: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The interrupt key gets through."""
    with caplog.at_level(logging.ERROR):
        message = refused(faulty("run"), "internal_error")
    assert message.startswith("AttributeError: 'int' object has no attribute 'startswith' at evalsvc/spec/paths.py:")
    assert "Traceback" in caplog.text
    assert "context.dataset(7)" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        faulty(error=KeyboardInterrupt())


def test_items_are_what_every_json_and_database_can_hold(faulty: Run) -> None:
    """A NaN made the result file something that other parsers refuse, and PostgreSQL refused the whole task."""
    found = faulty("merge", items=[{"index": 0, "nll": math.nan, "ids": (1, 2), "text": "a\0b"}]).output
    assert found.items == [{"index": 0, "nll": "NaN", "ids": [1, 2], "text": "a\ufffdb"}]
    refused(faulty("merge", items=[{"image": b"png"}]), "internal_error", "bytes b'png' is not JSON-able")


@pytest.mark.parametrize(
    ("output", "mistake"),
    [
        ({"number": 1}, "the value is a dict, not a Nothing"),
        (Nothing("1"), "a field's value does not match its annotation: .*Expected `int`"),
        (Nothing(np.float32(1)), "a field's value does not match its annotation"),
    ],
)
def test_an_output_of_another_type_than_the_class_names_fails_its_shard(faulty: Run, output: Any, mistake: str) -> None:
    message = refused(faulty("run", output=output), "internal_error")
    assert re.match(rf"FaultyWork\.run returned a value that cannot be serialised: {mistake}", message)
    assert message.endswith("return the dataclass that the class names in `Work[Parameters, Shard, Output]`")


def test_outputs_of_another_version_of_a_task_are_refused(faulty: Run) -> None:
    result = faulty("merge", msgpack.packb({"number": "many"}))
    refused(result, "plan_outdated", "'faulty' was", "by another version of its code (no Nothing: number: ")


@pytest.mark.usefixtures("short_process")
def test_a_worker_without_its_packages_says_how_to_install_them() -> None:
    script = "import sys; sys.modules['torch'] = None; import evalsvc.worker.shard"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"MissingPackage: evaluating needs the package 'torch'; run: {pip_install('worker')}" in done.stderr


def test_a_suite_is_evaluated_without_a_service(checkpoint: CheckpointRef, suite: Suite, weights: Path) -> None:
    progress: list[tuple[str, int, int, str]] = []
    result = run_suite(suite, checkpoint, lambda *now: progress.append(now)).model_dump()
    json.dumps({**result, "artifacts": None}, allow_nan=False)
    assert [artifact["name"] for artifact in result["artifacts"]["pairs"]] == ["loss_profile.json"]
    assert list(result["errors"]) == ["missing"], "a failed task must not take the others with it"
    assert result["errors"]["missing"]["code"] == "invalid_data"
    assert "none.jsonl does not exist" in result["errors"]["missing"]["message"]
    names = {metric["name"] for metric in result["metrics"]}
    assert {"pairs/text", "pairs/image_perplexity", "few/image_mass"} <= names
    assert {metric["protocol"] for metric in result["metrics"]} == set(result["protocols"])
    assert len(result["protocols"]) == 4, "of the losses and of the entropies that they are held against"
    assert [len(result["items"][task]) for task in ("pairs", "few")] == [3, 2]
    assert result["checkpoint"] == {"path": str(weights), "label": "run-a step 2", "sha256": hash_files(weights)}
    assert result["suite"]["digest"] == suite.digest
    provenance = result["provenance"]["pairs"]
    assert (len(provenance["shards"]), provenance["notes"]["sequences"]) == (2, 3)
    of_pairs = [now for now in progress if now[0] == "pairs"]
    assert (of_pairs[-1], sorted(of_pairs, key=lambda now: now[1])) == (("pairs", 3, 3, "sequences"), of_pairs)


# The checkpoint of a shard: loaded once, and the one that was posted


def test_the_model_is_loaded_once_for_all_shards(
    checkpoint: CheckpointRef, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes longer than a shard; the digest that the first shard finds must not load it again."""
    loads = count_loads(monkeypatch)
    assert (run_stage(checkpoint, suite).error, loads) == (None, []), "a plan needs none"
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
    checkpoint: CheckpointRef, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "hash_files", lambda path: path.unlink() or hash_files(path))
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
