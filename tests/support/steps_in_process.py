"""Shards of the task `steps` on a worker of the in-process cluster: no checkpoint is opened, and no torch imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from in_process_cluster import Call, Died

from evalsvc.errors import Cancelled
from evalsvc.files.artifacts import Artifact
from evalsvc.messages import ShardError, ShardRequest, ShardResult
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.looks import schedule
from evalsvc.spec.protocol import MetricValue, Protocol


def run_steps(request: ShardRequest, call: Call) -> ShardResult:
    """Do what `run_shard` does with `steps_task.Steps`, in its place."""
    parameters = request.task.parameters
    if request.stage == "plan":
        return ShardResult(_plan(parameters))
    if request.stage == "run":
        try:
            return ShardResult(_run(parameters, request.shards[0], call))
        except Cancelled as error:
            return ShardResult(error=ShardError(error.code, error.message))
    output = _merge(request)
    return ShardResult(output if request.stage == "merge" else {key: output[key] for key in ("metrics", "protocols")})


def _plan(parameters: Mapping[str, Any]) -> dict[str, Any]:
    units = [int(parameters["steps"])] * int(parameters["shards"])
    return {
        "shards": [{"index": index, "units": count} for index, count in enumerate(units)],
        "total": sum(units),
        "unit": "steps",
        "looks": [list(look) for look in schedule(units)] if parameters["looks"] else [],
        "until": parameters["until"],
    }


def _run(parameters: Mapping[str, Any], shard: Mapping[str, Any], call: Call) -> dict[str, Any]:
    index = shard["index"]
    for step in range(parameters["steps"]):
        with Path(parameters["log"]).open("a") as stream:
            stream.write(f"{index} {step} {call.worker}\n")
        call.pause(parameters["seconds"])
        if index == parameters["poison"]:
            raise Died
        if not parameters["deaf"]:
            call.report(step + 1)
    return {"steps": parameters["steps"], "bytes": bytes([index]) * parameters["size"]}


def _merge(request: ShardRequest) -> dict[str, Any]:
    parameters, name = request.task.parameters, request.task.name
    _check(request.shards, request.outputs, parameters["size"])
    total = sum(output["steps"] for output in request.outputs)
    protocol = Protocol({"task": "steps", "version": 1})
    metrics = [MetricValue(f"{name}/total", total, None, total, "steps", "none", protocol)]
    items = []
    if parameters["looks"]:
        marks = [Random(index).gauss(5, 1) for index in range(total)]
        items = [{"index": index, "mark": mark} for index, mark in enumerate(marks)]
        mean, error = sum(marks) / len(marks), standard_error(marks)
        metrics.append(MetricValue(f"{name}/mark", mean, error, total, "1", "lower", protocol, items=("mark",)))
    left = []
    if parameters["leaves"]:
        left = [Artifact("log", "log.txt", "text/plain", Path(parameters["log"]).read_bytes(), {"total": total})]
    base = request.base and {"label": request.base.label, "layout": request.base.layout}
    return {
        "metrics": [metric.to_json() for metric in metrics],
        "protocols": {protocol.id: dict(protocol.content)},
        "items": items,
        "artifacts": [artifact.to_message() for artifact in left],
        "notes": {"base": base},
        "warnings": [],
    }


def _check(shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any], size: int) -> None:
    """Each output is of the shard in its place."""
    assert [output["bytes"] for output in outputs] == [bytes([shard["index"]]) * size for shard in shards]
