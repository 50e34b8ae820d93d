"""The messages between the coordinator and a worker: what to do, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import JsonValue

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.files.artifacts import Artifact, KeptArtifact
from evalsvc.files.outputs import KeptOutput, OutputFile
from evalsvc.spec.looks import Until
from evalsvc.spec.suite import TaskSpec

Stage = Literal["plan", "run", "look", "merge"]

ShardDocument: TypeAlias = dict[str, JsonValue]
"""A shard of a plan as JSON, which only its task understands; but for `units`, see `units_of`."""


def units_of(shard: ShardDocument) -> int:
    """How much work a shard is, in the unit of its plan."""
    units = shard["units"]
    assert isinstance(units, int), "every shard has its units; see `tasks.task.Shard`"
    return units


@dataclass(frozen=True)
class ShardRequest:
    """One restartable piece of a task: cut it (plan), do a part (run), put the first parts together (look) or all of
    them (merge)."""

    task: TaskSpec
    stage: Stage
    checkpoint: CheckpointRef
    shards: Sequence[ShardDocument] = ()
    """Those of the plan: one for `run`, the first for `look`, all for `merge`, none for `plan`. Of a task that stops
    early, `merge` gets the first, too."""
    outputs: Sequence[KeptOutput] = ()
    """For `look` and `merge`: the packed output of each shard, or the file in the service's data folder that has it."""
    base: CheckpointRef | None = None
    """The checkpoint that the run is compared with; None: it has none."""
    is_first: bool = False
    """Whether the checkpoint is that base, or the run's first step; told for `merge`."""


@dataclass(frozen=True)
class ShardError:
    """An error as it is stored and shown."""

    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True)
class PlanResult:
    """How a task is cut."""

    shards: Sequence[ShardDocument]
    total: int
    """Units of work in all shards together."""
    unit: str
    """What progress counts, in the plural."""
    looks: Sequence[tuple[int, int]] = ()
    """After how many shards the task is looked at, and how many units the look rests on; the last is all of them."""
    until: Until | None = None
    """When the task may stop at a look."""


@dataclass(frozen=True)
class LookResult:
    """What a task has found with some of its shards, as JSON."""

    metrics: Sequence[dict[str, Any]]
    """As `MetricValue.to_json` writes them."""
    protocols: Mapping[str, Mapping[str, Any]]
    """Contents of the metrics' protocols by id."""


@dataclass(frozen=True)
class MergeResult(LookResult):
    """What a task has found, as JSON but for the contents of artifacts."""

    items: Sequence[dict[str, Any]]
    notes: Mapping[str, Any]
    artifacts: Sequence[Artifact]
    warnings: Sequence[dict[str, str]]


@dataclass(frozen=True)
class KeptResult(LookResult):
    """A `MergeResult` whose large parts are in files, as a row takes it."""

    items: bytes | str = b""
    """Packed results per item, or the digest of the file that has them."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[KeptArtifact] = ()
    warnings: Sequence[dict[str, str]] = ()


ShardOutput: TypeAlias = PlanResult | KeptOutput | LookResult | MergeResult | KeptResult
"""What comes of plan, run, look and merge. A worker sends the bytes of a run and a `MergeResult`; a file in place of
the bytes and a `KeptResult` are what the coordinator stores."""


@dataclass(frozen=True)
class ShardResult:
    """What a worker sends back."""

    output: ShardOutput | None = None
    """Of a run, the task's own output, packed."""
    error: ShardError | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Device, batch budget, versions, host, seconds, sha256 of the checkpoint: stored beside, never compared."""
    lost: Sequence[OutputFile] = ()
    """Outputs that a merge or look could not read: their shards must run again."""
    kept: Mapping[str, bytes] = field(default_factory=dict)
    """New files for later evaluations, by name, of a worker that cannot write them itself; see `files.kept`."""
