"""What a metric's definition says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, get_args

from evalsvc.spec.protocol import Direction

Kind = Literal["loss", "text_to_image", "reconstruction", "language", "forgetting", "completions", "alignment"]
"""Kind of task, as a metric's protocol has it under `task`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

ITEMS = "items"
"""Value of `Definition.pairs` where two checkpoints are compared item by item."""

OF_METRIC: Final = "the metric's"
"""Unit or direction of what is made of another metric, and has the other metric's."""


ANY = ("<metric>",)
"""Names of a definition that fits every name."""


@dataclass(frozen=True)
class Definition:
    """One metric, or several that differ only in which tokens, images or documents they are of."""

    kind: Kind
    """Kind of task that returns the metric."""
    names: tuple[str, ...]
    """Second halves of the metric's names, behind `<task>/` or `<benchmark>/`. `<…>` stands for any text, and what is
    in brackets may be absent: `acc[_within]`."""
    formula: str
    """The value, in a line of mathematics or words."""
    unit: str
    """As in `MetricValue.unit`, or `OF_METRIC`."""
    direction: Direction | Literal["the metric's"]
    """As in `MetricValue.direction`, or `OF_METRIC`."""
    item: str
    """What one item is, of which `n` counts how many there are."""
    error: str
    """How the standard error is found: a key of `ERRORS`, or in words."""
    source: str = ""
    """Publication that defines the metric; empty where the formula is all of it."""
    estimator: str = ""
    """Version of the estimator, as the protocol has it: of the metric, of the comparison with a base, or of both."""
    least: int = 1
    """Fewest items with which there is a value."""
    group: str = ""
    """Items that are not independent of each other, and count as one in the error; empty: every item is independent."""
    grouped_by: str = ""
    """Key of the task's items that names the group of each; empty where items do not name one."""
    pairs: str = ITEMS
    """`items` where two checkpoints are compared item by item, else the reason why they are not."""
    companion_of: tuple[str, str] | None = None
    """The metric next to which tables show this one, as a yardstick or in another unit: a regular expression of the
    part of the name to replace, and the replacement. None: the metric has a row of its own."""

    @property
    def title(self) -> str:
        """All names, for a table."""
        return ", ".join(self.names)

    def matches(self, name: str) -> bool:
        """Say whether this is the definition of a metric whose name ends so, behind `<task>/` or `<benchmark>/`."""
        return any(_expression(pattern).fullmatch(name) for pattern in self.names)

    def main_name(self, name: str) -> str | None:
        """Return the name of the metric next to which tables show the metric `name`; None for a row of its own."""
        return None if self.companion_of is None else re.sub(*self.companion_of, name)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern such as `<benchmark>_icl[_within]`."""
    signs = {"[": "(?:", "]": ")?"}
    parts = re.split(r"(<\w+>|[\[\]])", pattern)
    return re.compile("".join(".+" if part[:1] == "<" else signs.get(part, re.escape(part)) for part in parts))
