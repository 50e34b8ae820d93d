"""Shards of the task `steps` on a worker of the in-process cluster: no checkpoint is opened, and no torch imported."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from in_process_cluster import Call, Died
from steps_task import Steps, StepsWork

from evalsvc.errors import Cancelled
from evalsvc.messages import ShardError, ShardRequest, ShardResult
from evalsvc.tasks.task import Plan, TaskResult


def run_steps(request: ShardRequest, call: Call) -> ShardResult:
    """Do what `run_shard` does with `steps_task.Steps`, in its place."""
    work = StepsWork(Steps(name=request.task.name, **request.task.parameters))
    base = request.base and SimpleNamespace(checkpoint=request.base)
    context: Any = SimpleNamespace(checkpoint=request.checkpoint, base=base)
    if request.stage == "plan":
        return ShardResult(_planned(work.plan(context)))
    if request.stage == "run":
        try:
            return ShardResult(_run(work.task, request.shards[0], call))
        except Cancelled as error:
            return ShardResult(error=ShardError(error.code, error.message))
    output = _merged(work.merge(context, request.shards, request.outputs))
    return ShardResult(output if request.stage == "merge" else {key: output[key] for key in ("metrics", "protocols")})


def _planned(plan: Plan) -> dict[str, Any]:
    return {
        "shards": [dict(shard) for shard in plan.shards],
        "total": plan.total,
        "unit": plan.unit,
        "looks": [list(look) for look in plan.looks],
        "until": plan.until and plan.until.model_dump(),
    }


def _run(task: Steps, shard: Mapping[str, Any], call: Call) -> dict[str, Any]:
    index = shard["index"]
    for step in range(task.steps):
        with Path(task.log).open("a") as stream:
            stream.write(f"{index} {step} {call.worker}\n")
        call.pause(task.seconds)
        if index == task.poison:
            raise Died("it was poisoned")
        if not task.deaf:
            call.report(step + 1)
    return {"steps": task.steps, "bytes": bytes([index]) * task.size}


def _merged(result: TaskResult) -> dict[str, Any]:
    return {
        "metrics": [metric.to_json() for metric in result.metrics],
        "protocols": {metric.protocol.id: dict(metric.protocol.content) for metric in result.metrics},
        "items": result.items,
        "artifacts": [artifact.to_message() for artifact in result.artifacts],
        "notes": result.notes,
        "warnings": [],
    }
