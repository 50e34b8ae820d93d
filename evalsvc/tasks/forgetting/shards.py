"""What the shards of the forgetting task are: questions of a part, or some of the texts, with the base they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import JsonValue

from evalsvc.language.scoring import IdCounts
from evalsvc.tasks.language.work import QuestionShard
from evalsvc.tasks.task import Shard

Part = Literal["checkpoint", "base", "few", "zero"]
"""Who answers questions: the checkpoint as the suite says, or its base; or the checkpoint with `icl`'s solved examples,
or without any."""


@dataclass(frozen=True)
class Base:
    """The base of the run when the evaluation was planned."""

    sha256: str
    """Digest of the base's files."""
    layout: str
    """Digest of the base's layout."""
    rotary: Mapping[str, str]
    """See `text_work.base_rotary`."""

    def protocol(self) -> dict[str, object]:
        """Return what the protocol of a comparison says of the base."""
        return {"base": self.sha256, "base_layout": self.layout, **self.rotary}


@dataclass(frozen=True)
class PartShard(QuestionShard):
    """Questions to one of the two models."""

    part: Part
    base: Base


@dataclass(frozen=True)
class TextShard(Shard):
    """Some of the texts, for both models."""

    start: int
    stop: int
    digest: str
    """Digest of the file with the texts."""
    max_length: int
    ids: IdCounts
    within: bool
    """Whether one of the models has anything but text, so that losses within text are numbers of their own."""
    groups: Sequence[int] | None
    """The group of each text, by the index of its first member; None: every text is independent."""
    protocol: Mapping[str, JsonValue]
    base: Base
    is_base: bool
    """Whether the checkpoint is its own base, which is then not computed again."""
    part: Literal["text"] = "text"


ForgettingShard: TypeAlias = PartShard | TextShard
