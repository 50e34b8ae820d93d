"""Form of a metric's definition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, get_args

from evalsvc.spec.protocol import Direction

Range = Literal["any", "distance", "positive", "probability", "share"]
"""Values that a metric may have, which decide on its interval; see `value_interval`. `distance`: from 0 on.
`positive`, `probability`: means of numbers that cannot be negative. `share`: from 0 to 1, with Wilson's interval where
every item is 1 or 0."""

RANGES: Mapping[str, Range] = {
    "fraction": "share",
    "probability": "probability",
    "distance": "distance",
    **dict.fromkeys(("nats/token", "nats/pair", "bits/byte", "tokens"), "positive"),
}
"""Usual ranges, by unit; `any` for other units."""

Kind = Literal["loss", "text_to_image", "reconstruction", "language", "forgetting", "completions", "alignment"]
"""Kind of task, which a metric's protocol has under `task`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

ITEMS = "items"
"""Value of `Definition.pairs` where two checkpoints are compared item by item."""

OF_METRIC: Final = "the metric's"
"""Unit or direction of a metric that is computed from another metric and has that metric's unit or direction."""


ANY = ("<metric>",)
"""Names of a definition that fits every metric."""


@dataclass(frozen=True)
class Definition:
    """Definition of a metric, or of several metrics that differ only in the tokens, images or documents they cover."""

    kind: Kind
    """Kind of task that returns the metric."""
    names: tuple[str, ...]
    """Second halves of the metric's names, after `<task>/` or `<benchmark>/`. `<…>` stands for any text, and a part in
    brackets may be absent: `acc[_within]`.
    """
    formula: str
    """Formula of the value, in one line of mathematics or words."""
    unit: str
    """Unit as in `MetricValue.unit`, or `OF_METRIC`."""
    direction: Direction | Literal["the metric's"]
    """Direction as in `MetricValue.direction`, or `OF_METRIC`."""
    item: str
    """Kind of item that `n` counts."""
    error: str
    """Method of the standard error: a key of `ERRORS`, or a description in words."""
    range: Range | None = None
    """Values that the metric may have; None for the usual ones of its unit."""
    source: str = ""
    """Publication that defines the metric; empty where the formula is the whole definition."""
    estimator: str = ""
    """Version of the estimator as in the protocol: of the metric, of the comparison with a base, or of both."""
    least: int = 1
    """Smallest number of items that gives a value."""
    group: str = ""
    """Description of items that depend on each other and count as one in the error; empty if every item is independent.
    """
    grouped_by: str = ""
    """Key of the task's items that names each item's group; empty where items name no group."""
    pairs: str = ITEMS
    """Reason why items of two checkpoints are not paired; `items` if they are paired."""
    companion_of: tuple[str, str] | None = None
    """Rule for the name of the main metric, next to which tables show the metric: a regular expression for the part of
    the name to replace, and the replacement. None if the metric is no companion and has a row."""

    def range_in(self, unit: str) -> Range:
        """Return the values that the metric may have in a unit; `any` in another unit than the definition's."""
        return self.range or RANGES.get(unit, "any") if self.unit in (unit, OF_METRIC) else "any"

    @property
    def title(self) -> str:
        """All names, separated by commas."""
        return ", ".join(self.names)

    def matches(self, name: str) -> bool:
        """Return whether the definition covers a metric by its second half, after `<task>/` or `<benchmark>/`."""
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
