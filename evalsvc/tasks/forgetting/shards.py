"""The text shards of the forgetting task, and the base that all its shards use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from evalsvc.spec.layout import IdCounts
from evalsvc.tasks.task import Shard


@dataclass(frozen=True)
class Base:
    """The run's base when the evaluation was planned."""

    sha256: str
    """Digest of the base's files."""
    layout: str
    """Digest of the base's layout."""
    rotary: Mapping[str, str]
    """Base's rotary frequencies, see `text_work.base_rotary`."""

    def protocol(self) -> dict[str, object]:
        """Return the protocol's content for the base of a comparison."""
        return {"base": self.sha256, "base_layout": self.layout, **self.rotary}


@dataclass(frozen=True)
class TextShard(Shard):
    """A shard of texts for both models."""

    start: int
    stop: int
    digest: str
    """Digest of the file with the texts."""
    max_length: int
    ids: IdCounts
    within: bool
    """Whether one of the models has other ids than text, so that losses within text are numbers of their own."""
    groups: Sequence[int] | None
    """Group of each text, by the index of its first member; None if every text is independent."""
    protocol: Mapping[str, JsonValue]
    base: Base
    is_base: bool
    """Whether the checkpoint is its own base, whose results are then reused."""
    part: Literal["text"] = "text"
