"""Results of workers as plain data: what comes back, and what a worker that was taken over may send instead."""

import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from steps_task import Steps

from evalsvc import messages
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.files.artifacts import Artifact
from evalsvc.files.codec import Unreadable
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import KeptResult, LookResult, MergeResult, PlanResult, ShardError, ShardRequest, ShardResult
from evalsvc.spec.looks import Until

KEPT = OutputFile(task=1, shard=2, attempt=1, sha256="0" * 64, size=5)
METRICS = [{"name": "steps/count", "value": math.nan, "n": 2**60, "unit": "é"}]
PLAN = PlanResult([{"units": 4, "index": [1, {}]}], 4, "steps", [(1, 4)], Until(stderr=0.5, metric="mark"))
MERGE = MergeResult(METRICS, {"p": {"a": None}}, [{"x": 1}], {}, [Artifact("grid", "a.png", "image/png", b"\x00")], [])


def request(stage: messages.Stage) -> ShardRequest:
    task: Any = Steps(name="steps", log="log")
    return ShardRequest(task, stage, CheckpointRef("/a"), outputs=[b"first", KEPT])


@pytest.mark.parametrize(
    ("stage", "output"),
    [("plan", PLAN), ("run", b""), ("run", b"\xff" * 1000), ("look", LookResult(METRICS, {})), ("merge", MERGE)],
)
def test_a_result_comes_back_as_it_was_sent(stage: messages.Stage, output: Any) -> None:
    rest = {"provenance": {"threads": 2, "versions": {"a": "1"}}, "lost": [], "kept": {"a.npz": b"\x00\xff"}}
    result = ShardResult(output, **rest)
    assert repr(messages.unpack_result(request(stage), messages.pack_result(stage, result))) == repr(result)
    for ended in (ShardResult(error=ShardError("internal_error", "text"), lost=[]), ShardResult(lost=[KEPT])):
        assert messages.unpack_result(request(stage), messages.pack_result(stage, ended)) == ended


HOSTILE: dict[str, Any] = {
    "empty": b"",
    "no map": msgpack.packb([1, 2]),
    "no bytes": object(),
    "neither result nor error": msgpack.packb({}),
    "no message": b"\xc1" * 100,
    "cut off": messages.pack_result("merge", ShardResult(MERGE))[:-1],
    "deep": b"\x91" * 10_000,
    "many announced": b"\xdd\xff\xff\xff\xff",
    "an extension": msgpack.packb({"output": msgpack.ExtType(1, b"x")}),
    "of another stage": messages._RESULT.pack(ShardResult(b"an output of a run")),
    "names of stored items": messages._RESULT.pack(ShardResult(KeptResult([], {}, items="0" * 64))),
    "names of stored artifacts": messages.pack_result("plan", ShardResult(PLAN)),
    "a name of a stored output": messages._RESULT.pack(ShardResult(KEPT)),
    "a lost output of another task": messages.pack_result("merge", ShardResult(lost=[replace(KEPT, task=9, shard=9)])),
    "an error without text": msgpack.packb({"error": {"code": [], "message": {}}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises((Unreadable, TypeError)):
        messages.unpack_result(request("merge"), HOSTILE[name])
