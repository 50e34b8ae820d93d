"""Running one stage of a task, from the request message to the result message.

shards as JSON, outputs as MessagePack → the task's dataclasses → plan | run | look | merge → a result to send back
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeAlias, TypeGuard, overload

from evalsvc.errors import InternalError, PlanOutdated
from evalsvc.files.atomic import FileLost
from evalsvc.files.codec import Codec, Unreadable
from evalsvc.files.outputs import KeptOutput, OutputFile, OutputsLost
from evalsvc.messages import LookResult, MergeResult, PlanResult, ShardOutput, ShardRequest, Stage
from evalsvc.metrics.value_interval import with_intervals
from evalsvc.spec.protocol import Protocol, plain_json
from evalsvc.tasks.result_warnings import few_warnings
from evalsvc.tasks.task import Context, Output, Task, TaskResult, Work

AnyWork: TypeAlias = Work[Any, Any, Any]

ReadOutput: TypeAlias = Callable[[OutputFile], bytes]
"""Function that reads the packed output in a file; raises FileLost."""


def run_stage(work: AnyWork, request: ShardRequest, context: Context, read: ReadOutput) -> ShardOutput:
    """Run the requested stage of a task; `read` reads outputs from files."""
    if request.stage == "plan":
        plan = work.plan(context)
        with _returned(work, "plan"):
            shards = [work.shard_codec.to_json(shard) for shard in plan.shards]
        return PlanResult(shards, plan.total, plan.unit, plan.looks, plan.until)
    with _planned(request):
        shards = [work.shard_codec.from_json(shard) for shard in request.shards]
    if request.stage == "run":
        output = work.run(context, shards[0])
        with _returned(work, "run"):
            return work.output_codec.pack(output)
    result = work.merge(context, shards, Outputs(request, work.output_codec, read))
    return _result(result, request.stage, work.task)


class Outputs(Sequence[Output]):
    """The outputs of a task's shards, each read and unpacked at its first use."""

    def __init__(self, request: ShardRequest, codec: Codec[Output], read: ReadOutput) -> None:
        self._request, self._codec, self._read = request, codec, read
        self._unpacked: dict[int, Output] = {}

    def __len__(self) -> int:
        return len(self._request.outputs)

    @overload
    def __getitem__(self, index: int) -> Output: ...
    @overload
    def __getitem__(self, index: slice) -> list[Output]: ...
    def __getitem__(self, index: int | slice) -> Output | list[Output]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if index not in self._unpacked:
            kept = self._request.outputs[index]
            try:
                content = kept if isinstance(kept, bytes) else self._read(kept)
            except FileLost as error:
                # Name all outputs that cannot be read, so that their shards rerun together.
                raise OutputsLost([file for file in self._request.outputs if self._is_lost(file)], error) from None
            with _planned(self._request):
                self._unpacked[index] = self._codec.unpack(content)
        return self._unpacked[index]

    def _is_lost(self, kept: KeptOutput) -> TypeGuard[OutputFile]:
        if isinstance(kept, bytes):
            return False
        try:
            self._read(kept)
        except FileLost:
            return True
        return False


def _result(result: TaskResult, stage: Stage, task: Task) -> LookResult | MergeResult:
    engine: dict[str, object] = {"engine": task.engines} if task.engines else {}
    measured = [
        replace(metric, protocol=Protocol({**metric.protocol.content, **engine})) if engine else metric
        for metric in result.metrics
    ]
    metrics = [metric.to_json() for metric in with_intervals(measured, task.kind, result.items)]
    protocols = {metric.protocol.id: dict(metric.protocol.content) for metric in measured}
    if stage == "look":
        return LookResult(metrics, protocols)
    warnings = plain_json([asdict(warning) for warning in few_warnings(result.warnings)])
    items, notes = plain_json(list(result.items)), plain_json(result.notes)
    artifacts = [replace(artifact, details=plain_json(artifact.details)) for artifact in result.artifacts]
    return MergeResult(metrics, protocols, items, notes, artifacts, warnings)


@contextmanager
def _returned(work: AnyWork, stage: Stage) -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise InternalError(
            f"{type(work).__qualname__}.{stage} returned a value that cannot be serialised: {error}; return the "
            "dataclass that the class names in `Work[Parameters, Shard, Output]`"
        ) from None


@contextmanager
def _planned(request: ShardRequest) -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        raise PlanOutdated(
            f"task {request.task.name!r} was planned or run by another version of its code ({error}); a "
            "service plans the task again by itself, unless a plug-in returns shards that it cannot read"
        ) from None
