"""The messages between the coordinator and a worker: what to do, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.spec.suite import TaskSpec

Stage = Literal["plan", "run", "look", "merge"]


@dataclass(frozen=True)
class ShardRequest:
    """One restartable piece of a task: cut it (plan), do a part (run), put the first parts together (look) or all of
    them (merge)."""

    task: TaskSpec
    stage: Stage
    checkpoint: CheckpointRef
    shards: Sequence[Mapping[str, Any]] = ()
    """The payloads of the plan: one for `run`, the first for `look`, all for `merge`, none for `plan`. Of a task that
    stops early, `merge` gets the first, too."""
    outputs: Sequence[Any] = ()
    """For `look` and `merge`: the output of each shard."""
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
class ShardResult:
    """What a worker sends back. Everything in it is JSON-able, but for bytes in `output`."""

    output: Any = None
    """plan: `{"shards", "total", "unit", "looks", "until"}`; run: the task's own; merge: `{"metrics", "protocols",
    "items", "notes", "artifacts", "warnings"}`; look: the first two of them."""
    error: ShardError | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Device, batch budget, versions, host, seconds, sha256 of the checkpoint: stored beside, never compared."""
