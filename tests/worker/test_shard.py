import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
import torch
from worker_stages import count_loads, ignore, refused, run_stage

from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.config import Settings
from evalsvc.errors import Cancelled
from evalsvc.installation import pip_install
from evalsvc.messages import ShardRequest, ShardResult, Stage
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.tasks.task import Context, Plan, Shard, Task, TaskResult, Work
from evalsvc.worker import shard as shard_module
from evalsvc.worker.local import run_suite
from evalsvc.worker.shard import run_shard


def test_a_plan_loads_no_model(checkpoint: CheckpointRef, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    assert (run_stage(checkpoint, suite).error, loads) == (None, [])


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
    with caplog.at_level(logging.ERROR):
        message = refused(faulty("run"), "internal_error")
    assert message.startswith("AttributeError: 'int' object has no attribute 'startswith' at evalsvc/spec/paths.py:")
    assert "Traceback" in caplog.text
    assert "context.dataset(7)" in caplog.text


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
    refused(result, "data_changed", "'faulty' was", "by another version of its code (no Nothing: number: ")


def test_the_interrupt_key_gets_through(faulty: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        faulty(error=KeyboardInterrupt())


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
