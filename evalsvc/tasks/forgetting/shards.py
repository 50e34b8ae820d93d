"""The shards of the forgetting task: questions of one part, or some of the texts, and the base that they use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import JsonValue

from evalsvc.language.scoring import IdCounts
from evalsvc.tasks.language.work import QuestionShard
from evalsvc.tasks.task import Shard

Part = Literal["checkpoint", "base", "few", "zero"]
"""The respondent: the checkpoint as in the suite, or its base; or the checkpoint with or without `icl`'s solved
examples."""


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
class PartShard(QuestionShard):
    """A shard of questions to one of the two models."""

    part: Part
    base: Base


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


ForgettingShard: TypeAlias = PartShard | TextShard
