"""Looks: interim results of a task after some of its shards, and the rule by which a task stops early."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.spec.bounds import Word

MOST = 8
"""Maximum number of looks at a task, including the last. More looks would each be less certain, because tests at
several looks share one error rate."""

FEWEST_UNITS = 256
"""Fewest units of work before the first look. With fewer images the standard errors are too uncertain to stop by."""

ADDED = 2
"""Number of ones, and of zeros, added to the items of a share before its standard error is judged; see
`_cautious_error`."""

Spending = Literal["obrien-fleming", "pocock"]
"""Schedule by which the error is spent over the looks."""

DEFAULT_SPENDING: Spending = "obrien-fleming"


class Until(BaseModel):
    """A rule that stops a task at the first look at which a metric's standard error is small enough.

    The rule looks at the standard error, not at the value. If the standard error does not depend on the value, as for a
    distance, the value stays unbiased and its interval keeps its level. The standard error of a share depends on the
    value: see `_cautious_error`. For skewed items the standard error is also small where the value is small, so a task
    stops slightly early: the mean is off by a fifth of a standard error for items as skewed as a lognormal distribution
    with σ = 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stderr: float = Field(gt=0, allow_inf_nan=False)
    """Standard error at which the task stops, in the metric's unit."""
    metric: Word
    """Metric that decides: the second half of its name, such as `kid`."""

    def reached(self, metrics: Iterable[Mapping[str, Any]]) -> str | None:
        """Describe why `metrics` (as JSON) suffice; return None if they do not."""
        errors = [_cautious_error(metric) for metric in metrics if metric["name"].partition("/")[2] == self.metric]
        if not errors or not max(errors) <= self.stderr:
            return None
        return f"the standard error of {self.metric}, {max(errors):.3g}, is at most {self.stderr:g}"


def _cautious_error(metric: Mapping[str, Any]) -> float:
    """Return the standard error that a task may stop by; infinity if the standard error is unknown or zero. A standard
    error of zero only says that all items so far are equal. For a share p (unit `fraction`) the result is at least the
    standard error of Agresti and Coull, √(q (1 − q) / (n + 4)) with q = (n p + 2) / (n + 4), where n is the number of
    independent items with the standard error of the share, p (1 − p) / stderr². Otherwise a task would stop at a look
    that has few ones, and so a small standard error, by luck.

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
    """Return the note of a task that stopped before its end."""
    return f"after {units:,} of {total:,} {unit}: {reason}"


def schedule(units: Sequence[int], before: int = 0) -> tuple[tuple[int, int], ...]:
    """Return the looks at shards of these `units`, as (shards, units) each; the last look covers all shards.

    Counted backwards, each look has half the units of the next look, rounded up to whole shards, as long as it has
    FEWEST_UNITS or more. The first `before` shards, such as those of a reference, are not part of the sample and their
    units do not count.
    """
    done = list(accumulate(units[before:]))
    wanted = [done[-1] / 2**halvings for halvings in range(MOST)] if done else []
    places = {next(place for place, so_far in enumerate(done, 1) if so_far >= least) for least in wanted}
    return tuple(
        (before + place, done[place - 1])
        for place in sorted(places)
        if done[place - 1] >= FEWEST_UNITS or place == len(done)
    )
