"""The messages between the coordinator and a worker, which carry no code of a `worker` that was taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pydantic import JsonValue

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.files.artifacts import Artifact, KeptArtifact
from evalsvc.files.codec import Codec, Unreadable
from evalsvc.files.outputs import KeptOutput, OutputFile
from evalsvc.spec.looks import Until
from evalsvc.spec.suite import TaskSpec

Stage = Literal["plan", "run", "look", "merge"]

ShardDocument: TypeAlias = dict[str, JsonValue]
"""A shard of a plan as JSON. Only the shard's task reads its fields, except for `units`; see `units_of`."""


def units_of(shard: ShardDocument) -> int:
    """Return the amount of work in a shard, in the unit of its plan."""
    units = shard["units"]
    assert isinstance(units, int), "every shard has its units; see `tasks.task.Shard`"
    return units


@dataclass(frozen=True)
class ShardRequest:
    """A request for one restartable step of a task: cut the task into shards (plan), run one shard (run), evaluate the
    first shards (look) or all shards (merge)."""

    task: TaskSpec
    stage: Stage
    checkpoint: CheckpointRef
    shards: Sequence[ShardDocument] = ()
    """Shards of the plan: one for `run`, the first ones for `look`, all for `merge`, none for `plan`. If the task stops
    early, `merge` gets the first ones too."""
    outputs: Sequence[KeptOutput] = ()
    """Packed outputs of the shards, or files in the shared folder that hold them; for `look` and `merge` only."""
    base: CheckpointRef | None = None
    """The checkpoint that the run is compared with; None if the run has no base."""
    is_first: bool = False
    """Whether the checkpoint is the run's base or the run's first step. Set for `merge` only."""
    service: str = ""
    """Id of the service whose shared folder the worker must see; empty if the folder is not checked."""


@dataclass(frozen=True)
class ShardError:
    """An error as it is stored and displayed."""

    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True)
class PlanResult:
    """The shards of a task and its looks."""

    shards: Sequence[ShardDocument]
    total: int
    """Units of work in all shards together."""
    unit: str
    """Name of the unit of work, in the plural."""
    looks: Sequence[tuple[int, int]] = ()
    """Looks at the task, as (shards, units of work) that each look rests on; the last look covers the whole plan."""
    until: Until | None = None
    """Condition for stopping at a look."""


@dataclass(frozen=True)
class LookResult:
    """The result of some shards of a task, as JSON."""

    metrics: Sequence[dict[str, Any]]
    """Metrics as `MetricValue.to_json` writes them."""
    protocols: Mapping[str, Mapping[str, Any]]
    """Contents of the metrics' protocols by id."""


@dataclass(frozen=True)
class MergeResult(LookResult):
    """The result of a task: JSON, and the contents of artifacts."""

    items: Sequence[dict[str, Any]]
    notes: Mapping[str, Any]
    artifacts: Sequence[Artifact]
    warnings: Sequence[dict[str, str]]


@dataclass(frozen=True)
class KeptResult(LookResult):
    """A `MergeResult` as a database row stores it, with the large parts in files."""

    items: bytes | str = b""
    """Packed results per item, or the digest of the file that has them."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[KeptArtifact] = ()
    warnings: Sequence[dict[str, str]] = ()


ShardOutput: TypeAlias = PlanResult | KeptOutput | LookResult | MergeResult | KeptResult
"""The output of plan, run, look or merge. A worker sends the bytes of a run and a `MergeResult`; the coordinator stores
a file instead of the bytes, and a `KeptResult`."""


@dataclass(frozen=True)
class ShardResult:
    """The message that a worker returns for a `ShardRequest`."""

    output: ShardOutput | None = None
    """The output of the stage; for `run`, the task's output as packed bytes."""
    error: ShardError | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Device, batch budget, versions, host, seconds and the checkpoint's SHA-256. Stored with the result and never
    compared."""
    lost: Sequence[OutputFile] = ()
    """Outputs that a merge or look could not read. Their shards must run again."""
    kept: Mapping[str, bytes] = field(default_factory=dict)
    """New files for later evaluations, by name; see `files.kept`."""


_RESULT: Codec[ShardResult] = Codec(ShardResult)
_OUTPUTS: dict[Stage, Codec[Any]] = {"plan": Codec(PlanResult), "look": Codec(LookResult), "merge": Codec(MergeResult)}
"""Codecs of a worker's outputs; the output of `run` is bytes."""


def pack_result(stage: Stage, result: ShardResult) -> bytes:
    """Return the message of a worker as plain data, because the service loads no pickle of a worker."""
    if result.output is not None and stage in _OUTPUTS:
        result = replace(result, output=_OUTPUTS[stage].pack(result.output))
    return _RESULT.pack(result)


def unpack_result(request: ShardRequest, content: bytes) -> ShardResult:
    """Return the message that `pack_result` was given. Raises Unreadable for anything but an answer to the request."""
    result, codec = _RESULT.unpack(content), _OUTPUTS.get(request.stage)
    if not isinstance(result.output, bytes | None):
        raise Unreadable(f"the output of {request.stage} is not packed")
    if result.output is None and result.error is None and not result.lost:
        raise Unreadable("neither an output nor an error")
    if any(file not in request.outputs for file in result.lost):
        raise Unreadable("an output is lost that the request does not have")
    return result if codec is None or result.output is None else replace(result, output=codec.unpack(result.output))
