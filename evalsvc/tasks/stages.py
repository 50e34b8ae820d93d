"""One stage of a task, from the message that asks for it to the message that answers it.

shards as JSON, outputs as MessagePack → the task's dataclasses → plan | run | look | merge → a result to send back
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from evalsvc.errors import DataChanged, InternalError
from evalsvc.files.codec import Unreadable
from evalsvc.messages import LookResult, MergeResult, PlanResult, ShardOutput, ShardRequest, Stage
from evalsvc.spec.protocol import plain_json
from evalsvc.tasks.suspicions import few_warnings
from evalsvc.tasks.task import Context, TaskResult, Work

AnyWork: TypeAlias = Work[Any, Any, Any]


def run_stage(work: AnyWork, request: ShardRequest, context: Context) -> ShardOutput:
    """Do what `request` asks of a task.

    Raises:
        InternalError: the task returns what cannot travel.
        DataChanged: the shards or outputs are of another version of the task.
    """
    if request.stage == "plan":
        plan = work.plan(context)
        with _returned(work, "plan"):
            shards = [work.shard_codec.to_json(shard) for shard in plan.shards]
        return PlanResult(shards, plan.total, plan.unit, plan.looks, plan.until)
    with _planned(request):
        shards = [work.shard_codec.from_json(shard) for shard in request.shards]
        outputs = [work.output_codec.unpack(output) for output in request.outputs if isinstance(output, bytes)]
    if request.stage == "run":
        output = work.run(context, shards[0])
        with _returned(work, "run"):
            return work.output_codec.pack(output)
    return _result(work.merge(context, shards, outputs), request.stage)


def _result(found: TaskResult, stage: Stage) -> LookResult | MergeResult:
    metrics = [metric.to_json() for metric in found.metrics]
    protocols = {metric.protocol.id: dict(metric.protocol.content) for metric in found.metrics}
    if stage == "look":
        return LookResult(metrics, protocols)
    warnings = plain_json([warning.to_json() for warning in few_warnings(found.warnings)])
    items, notes = plain_json(list(found.items)), plain_json(found.notes)
    return MergeResult(metrics, protocols, items, notes, found.artifacts, warnings)


@contextmanager
def _returned(work: AnyWork, stage: Stage) -> Iterator[None]:
    """Say whose mistake a value of another type is than the class of a task names."""
    try:
        yield
    except TypeError as error:
        raise InternalError(
            f"{type(work).__qualname__}.{stage} returned what cannot travel: {error}; return the dataclass that the "
            "class names in `Work[Parameters, Shard, Output]`"
        ) from None


@contextmanager
def _planned(request: ShardRequest) -> Iterator[None]:
    """Translate what cannot be read: another version of the task planned it, or ran the shards."""
    try:
        yield
    except Unreadable as error:
        raise DataChanged(
            f"what task {request.task.name!r} planned or ran before is of another version of its code ({error}); "
            "evaluate again"
        ) from None
