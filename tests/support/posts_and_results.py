"""What tests post, and what the stages of its tasks bring back: suites, metrics, plans and results."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from evalsvc.checkpoints.reference import Identity
from evalsvc.files.artifacts import KeptArtifact
from evalsvc.files.items import pack_items
from evalsvc.messages import KeptResult, LookResult, PlanResult, ShardDocument, ShardResult
from evalsvc.spec.looks import Until
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.store.runs.posting import Submission


def suite(name: str = "quick", limit: int = 1, tasks: int = 1, kind: str = "loss") -> Suite:
    """A suite whose identity depends on `limit`."""
    specs = (TaskSpec(kind, f"{kind}-{index}", {"data": "/data.jsonl", "limit": limit}) for index in range(tasks))
    return Suite(name, "", tuple(specs))


def submission(step: int = 25, **fields: Any) -> Submission:
    defaults: dict[str, Any] = {
        "run": "run-a",
        "step": step,
        "uri": f"/checkpoints/epoch_{step}.pt",
        "path": f"/checkpoints/epoch_{step}.pt",
        "identity": Identity(size=100, mtime_ns=1),
    }
    return Submission(**(defaults | fields))


def metric(value: float, name: str = "loss/text", limit: int = 1, **fields: Any) -> MetricValue:
    defaults: dict[str, Any] = {
        "stderr": 0.1,
        "n": 8,
        "unit": "nats/token",
        "direction": "lower",
        "protocol": Protocol({"limit": limit}),
    }
    given = defaults | fields
    has_interval = given["stderr"] is not None and math.isfinite(value)
    return MetricValue(name, value, **{"ends": (value - 0.25, value + 0.25) if has_interval else None} | given)


def ran(**output: Any) -> ShardResult:
    """What a run shard brings back: an output with these fields."""
    return ShardResult(msgpack.packb(output))


def looked(*metrics: MetricValue) -> LookResult:
    """What a look brings back."""
    protocols = {item.protocol.id: dict(item.protocol.content) for item in metrics}
    return LookResult([item.to_json() for item in metrics], protocols)


def result(*metrics: MetricValue, items: Sequence[Mapping[str, Any]] | bytes | str = (), **found: Any) -> ShardResult:
    """What is kept of a merge: metrics, and `items`, `notes`, `warnings` or `artifacts`."""
    packed = items if isinstance(items, (bytes, str)) else pack_items(items)
    return ShardResult(KeptResult(**vars(looked(*metrics)), items=packed, **found), provenance={"device": "cpu"})


def kept_artifact(sha256: str, name: str = "grid.png") -> KeptArtifact:
    """An artifact of a merge whose content is kept already."""
    return KeptArtifact("grid", name, "image/png", {}, sha256, 3)


def plan(shards: int, looks: Sequence[int] = (), until: Mapping[str, Any] | None = None) -> ShardResult:
    """What the planning of a task brings back: so many shards of 10 units, looked at after so many of them."""
    payloads: list[ShardDocument] = [{"index": index, "units": 10} for index in range(shards)]
    stop = None if until is None else Until(**until)
    return ShardResult(PlanResult(payloads, 10 * shards, "sequences", [(look, 10 * look) for look in looks], stop))
