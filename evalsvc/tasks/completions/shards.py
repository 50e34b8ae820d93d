"""The one shard of the completions task, and what it leaves for the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsvc.tasks.completions.spec import GREEDY
from evalsvc.tasks.task import Shard


@dataclass(frozen=True, kw_only=True)
class CompletionsShard(Shard):
    """All completions of all prompts."""

    tokenizer: str
    """Digest."""
    sources: Mapping[str, str]
    """Labels of the `checkpoint`, and of the `base` where the run has one."""


COMPARED = ("same_as_base", "base_nll", "base_scored", "base_own_nll", "base_own_scored")
"""Fields that only items with a base have."""


@dataclass(frozen=True)
class Item:
    """A completion of a prompt in one way, with that of the base."""

    index: int
    prompt: str
    way: str
    """`greedy`, or the seed."""
    protocol: str
    """Id of what moves the ids: completions with the same id are comparable."""
    text: str
    ids: Sequence[int]
    """Rows of the table."""
    drawn: int
    image_ids: int
    seq_rep_4: float | None
    distinct_1: float | None
    distinct_2: float | None
    ended: int | None
    """0 or 1; None where no id ends a text."""
    base: str | None = None
    base_ids: Sequence[int] | None = None
    same_as_base: int | None = None
    """0 or 1, of greedy completions: seeded ones differ as soon as anything has moved."""
    base_nll: float | None = None
    """The base's loss on the text that the completion begins with, in nats."""
    base_scored: int | None = None
    """Ids of this text."""
    base_own_nll: float | None = None
    base_own_scored: int | None = None
    """The same of the base's own completion."""

    @property
    def is_greedy(self) -> bool:
        return self.way == GREEDY

    def row(self) -> dict[str, object]:
        """Return the item as the task's results have it."""
        return {name: value for name, value in vars(self).items() if value is not None or name not in COMPARED}


@dataclass(frozen=True, kw_only=True)
class CompletionsOutput:
    """What the shard leaves."""

    items: Sequence[Item]
    """Prompt by prompt, each in all ways."""
    cut: int
    """Prompts that were cut."""
    chance: float | None
    """Share of the table's ids that are images'."""
    base: str | None
    """Digest of the base."""
    base_layout: str | None
    base_rotary: Mapping[str, str]
    base_text_ids: int
    protocol: Mapping[str, Any]

    @property
    def base_protocol(self) -> dict[str, str | None]:
        """What the protocol says of a base that judges."""
        return {"base": self.base, "base_layout": self.base_layout, **self.base_rotary}
