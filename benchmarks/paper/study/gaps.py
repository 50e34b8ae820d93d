"""The gap between two starts, pre-trained minus random, by seed and over seeds.

Two errors belong to a gap. That of the items says how the gap would move with other held-out sequences; runs are paired
over the same sequences. The spread between seeds says how the gap would move with another training. The verdict rests
on the spread between seeds where there are several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evalsvc.spec.documents.comparisons import DifferenceCurve
from evalsvc.web.curves import Curve
from study.measured import Estimate, Measured, estimated_curve, finite, over_seeds, short


@dataclass(frozen=True)
class GapCurve:
    """The gap of one metric along the steps."""

    metric: str
    by_seed: Sequence[DifferenceCurve]
    between: str = "pre-trained − random"
    """The two sides of the difference."""

    @property
    def steps(self) -> Sequence[int]:
        return self.by_seed[0].x

    @property
    def estimates(self) -> list[Estimate]:
        """Return the gap at each step: over seeds, or of the items where there is one seed."""
        if len(self.by_seed) == 1:
            return of_items(self.by_seed[0])
        columns = zip(*(curve.difference for curve in self.by_seed), strict=True)
        return [over_seeds([finite(value) for value in column]) for column in columns]

    @property
    def last(self) -> Estimate:
        return self.estimates[-1]

    @property
    def first(self) -> Estimate:
        return self.estimates[0]

    @property
    def item_errors(self) -> list[float]:
        """Return at each step the largest standard error over items of the seeds' gaps."""
        columns = zip(*(curve.stderr for curve in self.by_seed), strict=True)
        return [max(finite(error) for error in column if error is not None) for column in columns]

    def closed_from(self) -> int | None:
        """Return the step from which on every interval covers zero; None if the last one does not."""
        return last_unbroken(self.steps, [estimate.covers_zero for estimate in self.estimates])

    def curves(self) -> list[Curve]:
        """Return a curve for each seed with the intervals of its items, and the mean with that between seeds."""
        unit = f"{self.between}, {self.by_seed[0].unit}"
        seeds = [
            estimated_curve(f"seed {number}", self.metric, unit, zip(curve.x, of_items(curve), strict=True))
            for number, curve in enumerate(self.by_seed)
        ]
        if len(seeds) == 1:
            return seeds
        mean = estimated_curve("mean of seeds", self.metric, unit, zip(self.steps, self.estimates, strict=True))
        return [mean, *seeds]

    def sentence(self) -> str:
        """Say how large the gap is at the end, with both errors, and what its interval leaves open."""
        last = self.last
        errors = f"items ± {short(self.item_errors[-1])}"
        if last.deviation is not None:
            errors += f", between seeds ± {short(last.deviation)}"
        closed = self.closed_from()
        until = "the interval does not cover zero at the end"
        if closed is not None:
            until = f"the interval covers zero from step {closed:,} on{self._not_excluded()}"
        return f"{last} at step {self.steps[-1]:,} ({errors}); {until}"

    def _not_excluded(self) -> str:
        farthest = self.last.farthest
        return f"; not excluded at the end: a gap of up to {short(farthest)}" if math.isfinite(farthest) else ""


def of_items(curve: DifferenceCurve) -> list[Estimate]:
    """Return the differences of a curve with the intervals of the items."""
    rows = zip(curve.difference, curve.low, curve.high, strict=True)
    return [Estimate(finite(value), _bound(low), _bound(high)) for value, low, high in rows]


def _bound(bound: float | str | None) -> float | None:
    return bound if isinstance(bound, float) else None


def last_unbroken(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    """Return the first step of the unbroken series of steps with `holds` at the end; None if the last step has not."""
    first = None
    for step, holds_here in zip(reversed(steps), reversed(holds), strict=True):
        if not holds_here:
            break
        first = step
    return first


def gap_of(
    measured: Measured, metric: str, seeds: Sequence[int], name: Callable[[str, int], str], start: str = "pretrained"
) -> GapCurve:
    """Return the gap of a metric from a start to the random one; `name` returns the name of a start's run at a seed."""
    pairs = [(name("random", seed), name(start, seed)) for seed in seeds]
    return GapCurve(metric, [measured.differences(random, other, metric) for random, other in pairs])
