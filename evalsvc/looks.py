"""Results before the end: after how many of its shards a task is looked at, and when it has seen enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.bounds import Word

MOST = 8
"""Looks at one task, that at its end included: what is tested at every look is paid for at all the others."""

FEWEST_UNITS = 256
"""Units of work before the first look. Errors of fewer images are themselves too uncertain to stop by."""


class Until(BaseModel):
    """A task stops at the first look at which a metric's standard error is small enough.

    The error is stopped by, not the value, so to first order the value is not biased by it; its interval is nominal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stderr: float = Field(gt=0, allow_inf_nan=False)
    """So small, in the metric's unit."""
    metric: Word
    """Which metric: the second half of its name, `kid`."""

    def reached(self, metrics: Iterable[Mapping[str, Any]]) -> str | None:
        """Why `metrics` (as JSON) are enough; None: they are not."""
        found = [metric["stderr"] for metric in metrics if metric["name"].partition("/")[2] == self.metric]
        errors = [math.inf if error is None else float(error) for error in found]
        if not errors or not max(errors) <= self.stderr:
            return None
        return f"the standard error of {self.metric}, {max(errors):.3g}, is at most {self.stderr:g}"


def stop_note(reason: str, units: int, total: int, unit: str) -> str:
    """What the notes of a task say that stopped before its end."""
    return f"after {units:,} of {total:,} {unit}: {reason}"


def schedule(units: Sequence[int], before: int = 0) -> tuple[tuple[int, int], ...]:
    """When to look at shards of so many `units`: after how many shards, and units; the last look is at all of them.

    From the end to the beginning each look has half the units of the next one, rounded up to whole shards, as long as
    these have FEWEST_UNITS or more. The first `before` shards are no part of the sample, such as those of a reference;
    their units do not count.
    """
    done = list(accumulate(units[before:]))
    wanted = [done[-1] / 2**halvings for halvings in range(MOST)] if done else []
    places = {next(place for place, so_far in enumerate(done, 1) if so_far >= least) for least in wanted}
    return tuple(
        (before + place, done[place - 1])
        for place in sorted(places)
        if done[place - 1] >= FEWEST_UNITS or place == len(done)
    )
