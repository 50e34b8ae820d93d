"""One task on a checkpoint as `evalsvc run` runs it, and the parts of its result; or one stage of it on a worker."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.messages import PlanResult, ShardRequest
from evalsvc.spec.suite import TaskSpec, parse_suite
from evalsvc.store.queue.transitions import PLAN
from evalsvc.tasks import stages
from evalsvc.tasks.stages import AnyWork
from evalsvc.tasks.task import Context, TaskResult
from evalsvc.worker.local import run_suite
from evalsvc.worker.shard import run_shard


def run_task(checkpoint: CheckpointRef, base: CheckpointRef | None = None, **task: Any) -> dict[str, Any]:
    """As `evalsvc run --output` writes it, but with the contents of artifacts."""
    return run_suite(parse_suite({"tasks": [task]}, "test"), checkpoint, lambda *_: None, base).model_dump()


def run_stage(
    stage: Any,
    checkpoint: CheckpointRef,
    base: CheckpointRef | None = None,
    shards: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    /,
    report: Callable[[int], None] = lambda done: None,
    is_first: bool = False,
    **task: Any,
) -> Any:
    [spec] = parse_suite({"tasks": [task]}, "test").tasks
    request = ShardRequest(spec, stage, checkpoint, shards, outputs, base=base, is_first=is_first)
    done = run_shard(request, report, Settings.load())
    return done.output if done.error is None else done.error


def metrics(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name; nothing may have failed."""
    assert result["errors"] == {}
    found = {metric["name"]: metric for metric in result["metrics"]}
    assert len(found) == len(result["metrics"])
    return found


def items(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    assert result["errors"] == {}
    [found] = result["items"].values()
    return list(found)


def notes(result: Mapping[str, Any]) -> dict[str, Any]:
    [provenance] = result["provenance"].values()
    return dict(provenance["notes"])


def artifacts(result: Mapping[str, Any]) -> dict[str, bytes]:
    [found] = result["artifacts"].values()
    return {artifact["name"]: artifact["content"] for artifact in found}


def error(result: Mapping[str, Any]) -> str:
    [found] = result["errors"].values()
    return f"{found['code']}: {found['message']}"


def do_all(work: AnyWork, context: Context) -> TaskResult:
    """Do a task stage by stage, with its shards and outputs as they come over the wire."""
    request = ShardRequest(TaskSpec("", "", {}), "plan", context.checkpoint)
    plan = stages.run_stage(work, request, context, lambda file: pytest.fail(f"a plan reads no output, and not {file}"))
    assert isinstance(plan, PlanResult)
    kept = PLAN.unpack(PLAN.pack(plan)).shards
    shards = [work.shard_codec.from_json(json.loads(json.dumps(shard))) for shard in kept]
    outputs = [work.output_codec.unpack(work.output_codec.pack(work.run(context, shard))) for shard in shards]
    return work.merge(context, shards, outputs)
