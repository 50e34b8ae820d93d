"""Results before the end: after how many of its shards a task is looked at, and when it has seen enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.spec.bounds import Word

MOST = 8
"""Looks at one task, that at its end included: what is tested at every look is paid for at all the others."""

FEWEST_UNITS = 256
"""Units of work before the first look. Errors of fewer images are themselves too uncertain to stop by."""


ADDED = 2
"""Ones, and zeros, that are added to the items of a share before its error is judged; see `_cautious_error`."""


class Until(BaseModel):
    """A task stops at the first look at which a metric's standard error is small enough.

    The error decides, not the value, so a value whose error does not depend on it, such as that of a distance, is
    neither biased nor less certain than its interval says. The error of a share depends on it: see `_cautious_error`.
    Skewed items, too, have a small error where the value is small, and are then stopped a little early: by a fifth of a
    standard error in the mean for items as skewed as a lognormal distribution with σ = 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stderr: float = Field(gt=0, allow_inf_nan=False)
    """Standard error at which the task stops, in the metric's unit."""
    metric: Word
    """Metric to watch: the second half of its name, such as `kid`."""

    def reached(self, metrics: Iterable[Mapping[str, Any]]) -> str | None:
        """Say why `metrics` (as JSON) are enough; None: they are not."""
        errors = [_cautious_error(metric) for metric in metrics if metric["name"].partition("/")[2] == self.metric]
        if not errors or not max(errors) <= self.stderr:
            return None
        return f"the standard error of {self.metric}, {max(errors):.3g}, is at most {self.stderr:g}"


def _cautious_error(metric: Mapping[str, Any]) -> float:
    """Return the standard error that a task may stop by; infinity where it is not known, or zero.

    An error of zero says that all items so far are equal, not that all will be. Of a share (unit `fraction`) p it is at
    least that of Agresti and Coull, √(q (1 − q) / (n + 4)) with q = (n p + 2) / (n + 4) and n the number of independent
    items that have the error of the share, p (1 − p) / stderr²: else a task would stop at the look that by luck has few
    ones, and so a small error.

    Source: A. Agresti, B. A. Coull, The American Statistician 52 (1998) 119–126.
    """
    stderr = math.nan if metric["stderr"] is None else float(metric["stderr"])
    if math.isnan(stderr):
        return math.inf
    if metric["unit"] != "fraction" or not 0 <= float(metric["value"]) <= 1:
        return stderr if stderr > 0 else math.inf
    share, n = float(metric["value"]), float(metric["n"] if metric.get("groups") is None else metric["groups"])
    if 0 < share < 1 and stderr > 0:
        n = share * (1 - share) / stderr**2
    more = n + 2 * ADDED
    likely = (n * share + ADDED) / more
    return max(stderr, math.sqrt(likely * (1 - likely) / more))


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
