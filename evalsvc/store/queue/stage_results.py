"""Results of stages in the rows of shards: packed where they are stored, typed where the queue reads them."""

from __future__ import annotations

from typing import TypeVar

from evalsvc.files.codec import Codec, Unreadable
from evalsvc.files.outputs import KeptOutput, OutputFile
from evalsvc.messages import KeptResult, LookResult, PlanResult, ShardOutput

Result = TypeVar("Result")

PLAN: Codec[PlanResult] = Codec(PlanResult)
LOOK: Codec[LookResult] = Codec(LookResult)
MERGE: Codec[KeptResult] = Codec(KeptResult)


def to_row(output: ShardOutput | None) -> KeptOutput | None:
    """Return what the row of a shard stores of an output. Raises TypeError for a merge whose artifacts are not kept."""
    if isinstance(output, PlanResult):
        return PLAN.pack(output)
    if isinstance(output, KeptResult):
        return MERGE.pack(output)
    return LOOK.pack(output) if isinstance(output, LookResult) else output


def from_row(codec: Codec[Result], stored: KeptOutput | None) -> Result:
    """Return the result that a row has of a plan, look or merge that succeeded. Raises Unreadable."""
    if stored is None or isinstance(stored, OutputFile):
        raise Unreadable(f"no {codec.name} in the row")
    return codec.unpack(stored)
