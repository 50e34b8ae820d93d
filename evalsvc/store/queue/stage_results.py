"""Conversion of stage results between typed objects and the packed column of a shard's row."""

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
    """Pack the output of a stage for the row of its shard."""
    if isinstance(output, PlanResult):
        return PLAN.pack(output)
    if isinstance(output, KeptResult):
        return MERGE.pack(output)
    return LOOK.pack(output) if isinstance(output, LookResult) else output


def from_row(codec: Codec[Result], stored: KeptOutput | None) -> Result:
    """Return the stored result of a plan, look or merge."""
    if stored is None or isinstance(stored, OutputFile):
        raise Unreadable(f"no {codec.name} in the row")
    return codec.unpack(stored)
