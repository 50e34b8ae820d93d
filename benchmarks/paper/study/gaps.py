"""The gap between two sides, such as pre-trained minus random, by seed and over seeds.

Two errors belong to a gap. That of the items says how the gap would move with other held-out sequences; runs are
paired over the same sequences. The spread between seeds says how the gap would move with another training. Claims rest
on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from evalsvc.spec.documents.comparisons import DifferenceCurve
from evalsvc.web.charts import curve_chart
from evalsvc.web.curves import Curve, Line
from study.claims import SAME_LOSS, Claim, Region
from study.measured import Estimate, Measured, estimated_curve, finite, over_seeds, short

NO_DIFFERENCE = Line(0.0, "no difference")


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
    def tolerance(self) -> float:
        """`SAME_LOSS` of the loss of the side that is compared with, at the end."""
        return SAME_LOSS * fmean(finite(curve.a[-1]) for curve in self.by_seed)

    def claim(self, says: str, region: Region, bound: float, place: int = -1) -> Claim:
        """Return a claim about the gap at the end, or at the step at another place."""
        values = [finite(curve.difference[place]) for curve in self.by_seed]
        errors = [finite(curve.stderr[place] or 0.0) for curve in self.by_seed]
        return Claim(says, values, errors, region, bound)

    def curves(self) -> list[Curve]:
        """Return a curve for each seed with the intervals of its items, and the mean with that between seeds."""
        unit = f"{self.between}, {self.by_seed[0].unit}"
        seeds = [
            estimated_curve(f"training {number}", self.metric, unit, zip(curve.x, of_items(curve), strict=True))
            for number, curve in enumerate(self.by_seed, 1)
        ]
        if len(seeds) == 1:
            return seeds
        mean = estimated_curve("mean", self.metric, unit, zip(self.steps, self.estimates, strict=True))
        return [mean, *seeds]

    def chart(self) -> dict[str, object]:
        """Return the chart of the curves, with the line of no difference."""
        return curve_chart(self.curves(), lines=[NO_DIFFERENCE], along="log")

    def sentence(self) -> str:
        """Say how large the gap is at the end, at each seed and over the seeds."""
        singles = ", ".join(short(finite(curve.difference[-1])) for curve in self.by_seed)
        return f"{self.last} at step {self.steps[-1]:,}, by seed {singles}; the bound is ± {short(self.tolerance)}"


def of_items(curve: DifferenceCurve) -> list[Estimate]:
    """Return the differences of a curve with the intervals of the items."""
    rows = zip(curve.difference, curve.low, curve.high, strict=True)
    return [Estimate(finite(value), _bound(low), _bound(high)) for value, low, high in rows]


def _bound(bound: float | str | None) -> float | None:
    return bound if isinstance(bound, float) else None


def gap_of(
    measured: Measured,
    metric: str,
    seeds: Sequence[int],
    name: Callable[[str, int], str],
    sides: tuple[str, str] = ("random", "pretrained"),
    between: str = "pre-trained − random",
) -> GapCurve:
    """Return the gap of a metric from the first side to the second; `name` returns the run of a side at a seed."""
    pairs = [[name(side, seed) for side in sides] for seed in seeds]
    return GapCurve(metric, [measured.differences(a, b, metric) for a, b in pairs], between)
