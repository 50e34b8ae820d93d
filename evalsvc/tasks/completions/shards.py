"""The only shard of the completions task, and its output for the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsvc.tasks.completions.spec import GREEDY
from evalsvc.tasks.task import Shard


@dataclass(frozen=True, kw_only=True)
class CompletionsShard(Shard):
    """A shard with all completions of all prompts."""

    tokenizer: str
    """Digest of the tokenizer."""
    sources: Mapping[str, str]
    """Labels of the `checkpoint`, and of the `base` if the run has one."""


COMPARED = ("same_as_base", "base_nll", "base_scored", "base_own_nll", "base_own_scored")
"""Fields that are present only if the run has a base."""


@dataclass(frozen=True)
class Item:
    """A completion of a prompt, with the base's completion."""

    index: int
    prompt: str
    way: str
    """`greedy`, or the seed."""
    protocol: str
    """Id of the drawing protocol: completions with the same id are comparable."""
    text: str
    ids: Sequence[int]
    """Rows of the table."""
    drawn: int
    image_ids: int
    seq_rep_4: float | None
    distinct_1: float | None
    distinct_2: float | None
    ended: int | None
    """0 or 1; None if no id ends a text."""
    base: str | None = None
    base_ids: Sequence[int] | None = None
    same_as_base: int | None = None
    """0 or 1, only for greedy completions: seeded ones differ after any small change."""
    base_nll: float | None = None
    """Base's loss in nats on the text at the beginning of the completion."""
    base_scored: int | None = None
    """Number of ids of that text."""
    base_own_nll: float | None = None
    base_own_scored: int | None = None
    """Number of scored ids of the base's own completion."""

    @property
    def is_greedy(self) -> bool:
        return self.way == GREEDY

    def row(self) -> dict[str, object]:
        """Return the item as it appears in the task's results."""
        return {name: value for name, value in vars(self).items() if value is not None or name not in COMPARED}


@dataclass(frozen=True, kw_only=True)
class CompletionsOutput:
    """The output of the shard."""

    items: Sequence[Item]
    """Items sorted by prompt, with all completions of a prompt together."""
    cut: int
    """Number of prompts that were cut."""
    chance: float | None
    """Share of image ids among the table's ids."""
    base: str | None
    """Digest of the base."""
    base_layout: str | None
    base_rotary: Mapping[str, str]
    base_text_ids: int
    protocol: Mapping[str, Any]

    @property
    def base_protocol(self) -> dict[str, str | None]:
        """Return the protocol's content for a base that judges completions."""
        return {"base": self.base, "base_layout": self.base_layout, **self.base_rotary}
