"""Field types that several documents share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

Id = Annotated[int, Field(ge=1, examples=[40])]
Count = Annotated[int, Field(ge=0, examples=[9])]
Text = Annotated[str, Field(examples=["…"])]
Seconds = Annotated[float, Field(examples=[340.2])]
Time = Annotated[
    str,
    BeforeValidator(lambda time: time.isoformat(timespec="milliseconds") if isinstance(time, datetime) else time),
    Field(json_schema_extra={"format": "date-time"}, examples=["2026-02-03T10:11:12.131+00:00"]),
]
"""A moment in UTC as ISO 8601, to the millisecond."""
Digest = Annotated[str, Field(examples=["9f86d0…"])]
"""A SHA-256 in hexadecimal digits."""
Open = dict[str, object]
"""An object whose fields depend on a model, a task or a user."""

RunName = Annotated[str, Field(examples=["t2i-1b-pretrained"])]
Step = Annotated[int, Field(ge=0, examples=[2500])]
Variant = Annotated[str, Field(examples=["raw"])]
Uri = Annotated[str, Field(examples=["/checkpoints/t2i-1b-pretrained/checkpoints/epoch_25.pt"])]
Tokens = Annotated[int, Field(ge=0, examples=[2_621_440_000])]
SuiteName = Annotated[str, Field(examples=["loss"])]
TaskName = Annotated[str, Field(examples=["loss"])]
TaskKind = Annotated[str, Field(examples=["loss"])]

NextCursor = Annotated[
    str | None, Field(description="Cursor of the next page; null on the last page.", examples=[None])
]

Word = Literal["NaN", "Infinity", "-Infinity"]
"""A number that JSON cannot express."""
Number = Annotated[float | Word, Field(examples=[6.31])]

State = Literal["queued", "running", "succeeded", "partly_failed", "failed", "cancelled"]
OVER: tuple[State, ...] = ("succeeded", "partly_failed", "failed", "cancelled")
"""Final states of an evaluation, until a retry. Tasks and shards are never `partly_failed`."""

Direction = Literal["lower", "higher", "none"]
"""The better direction of a metric; `none` for a description, such as a count or a probability mass."""
