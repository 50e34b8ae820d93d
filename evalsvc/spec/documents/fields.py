"""Field types that several documents share."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Example

Id = Annotated[int, Example(40, minimum=1)]
Count = Annotated[int, Example(9, minimum=0)]
Text = Annotated[str, Example("…")]
Seconds = Annotated[float, Example(340.2)]
Time = Annotated[str, Example("2026-02-03T10:11:12.131+00:00", format="date-time")]
"""A moment in UTC as ISO 8601, to the millisecond."""
Digest = Annotated[str, Example("9f86d0…")]
"""A SHA-256 in hexadecimal digits."""
Open = dict[str, object]
"""An object whose fields depend on a model, a task or a user."""

RunName = Annotated[str, Example("t2i-1b-pretrained")]
Step = Annotated[int, Example(2500, minimum=0)]
Variant = Annotated[str, Example("raw")]
Uri = Annotated[str, Example("/checkpoints/t2i-1b-pretrained/checkpoints/epoch_25.pt")]
Tokens = Annotated[int, Example(2_621_440_000, minimum=0)]
SuiteName = Annotated[str, Example("loss")]
TaskName = Annotated[str, Example("loss")]
TaskKind = Annotated[str, Example("loss")]

NextCursor = Annotated[str | None, Example(None)]
"""The cursor of the next page of a list; null on the last page."""

Word = Literal["NaN", "Infinity", "-Infinity"]
"""A number that JSON cannot express."""
Number = Annotated[float | Word, Example(6.31)]

State = Literal["queued", "running", "succeeded", "partly_failed", "failed", "cancelled"]
OVER: tuple[State, ...] = ("succeeded", "partly_failed", "failed", "cancelled")
"""Final states of an evaluation, until a retry. Tasks and shards are never `partly_failed`."""

Direction = Literal["lower", "higher", "none"]
"""The better direction of a metric; `none` for a description, such as a count or a probability mass."""
