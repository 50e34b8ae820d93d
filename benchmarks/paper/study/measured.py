"""What the findings read, all from the REST interface of the service: curves, values, differences and artifacts."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean, stdev

from evalsvc.client import Client
from evalsvc.errors import UnknownName
from evalsvc.metrics.intervals import LEVEL, critical_value
from evalsvc.spec.documents.comparisons import DifferenceCurve, MetricDifference
from evalsvc.spec.documents.fields import Number
from evalsvc.web.curves import Curve

sys.path.append(str(Path(__file__).parents[2]))
from plain_curves import plain_curve

EVERY_STEP = 10_000
"""Number of buckets of a curve: at most one step in each, since no run has as many steps."""


@dataclass(frozen=True)
class Measured:
    """Reader of the history of the paper's runs."""

    client: Client

    def curve(self, run: str, metric: str, variant: str = "raw", label: str | None = None) -> Curve:
        """Return a metric of a run along its steps; `label` replaces the name of the run in figures.

        Raises:
            LookupError: the run does not have exactly one series of the metric.
        """
        try:
            buckets = self.client.buckets(run, [metric], points=EVERY_STEP, variant=variant)
        except UnknownName as error:
            raise LookupError(error.message) from None
        series = [series for series in buckets.series if series.metric == metric]
        if len(series) != 1:
            raise LookupError(f"{run}:{variant} has {len(series)} series of {metric}, and a figure needs 1")
        return Curve(label or (run if variant == "raw" else f"{run}:{variant}"), series[0])

    def last(self, run: str, metric: str, variant: str = "raw") -> CurveValue:
        """Return the value at the last step."""
        return values_of(self.curve(run, metric, variant))[-1]

    def first(self, run: str, metric: str) -> CurveValue:
        """Return the value at the first step."""
        return values_of(self.curve(run, metric))[0]

    def differences(self, a: str, b: str, metric: str) -> DifferenceCurve:
        """Return the differences b − a along the steps that both runs have.

        Raises:
            LookupError: the runs do not have exactly one curve of differences.
        """
        curves = self.client.compare_runs(a, b, [metric]).curves
        if len(curves) != 1:
            raise LookupError(f"{a} and {b} have {len(curves)} curves of {metric}, and a figure needs 1")
        return curves[0]

    def contrast(self, a: str, b: str, metric: str) -> MetricDifference:
        """Return the difference b − a of a metric between two checkpoints, each RUN@STEP."""
        return next(row for row in self.client.compare(a, b, [metric]).contrasts if row.metric == metric)

    def token_counts(self, run: str, step: int, suite: str, task: str) -> dict[str, int]:
        """Return the number of measured tokens of each type, summed over the items of a loss task."""
        evaluations = self.client.evaluations(run, suite=suite, state="succeeded", first=step, last=step)
        evaluation = next(item.id for item in evaluations if item.variant == "raw")
        columns = {kind: f"n_{kind}" for kind in ("text", "image", "special")}
        rows = self.client.items(evaluation, task=task, columns=["index", *columns.values()]).items[task]
        return {kind: sum(int(str(row.get(column, 0))) for row in rows) for kind, column in columns.items()}

    def completions(self, run: str) -> dict[str, dict[int, str]]:
        """Return the greedy completions of a run, by prompt and step."""
        texts: dict[str, dict[int, str]] = {}
        for step in self.client.completions(run, variant="raw"):
            for item in step.completions:
                if item.way == "greedy":
                    texts.setdefault(item.prompt, {})[step.step] = item.text
        return texts

    def artifact(self, run: str, step: int, kind: str, name: str) -> bytes:
        """Return the content of an artifact. Raises LookupError if the checkpoint has no such artifact."""
        for artifact in self.client.artifacts(run, kind, step):
            if PurePosixPath(artifact.name).name == name:
                return self.client.artifact_content(artifact.id).content
        raise LookupError(f"{run}@{step} has no artifact {name} of the kind {kind}")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval of 95 %, and what the interval covers."""

    value: float
    low: float | None
    high: float | None
    deviation: float | None = None
    """Standard deviation between seeds; None for a single seed."""

    @property
    def covers_zero(self) -> bool:
        """Tell whether zero is in the interval; without an interval nothing excludes zero."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high

    @property
    def farthest(self) -> float:
        """Return the distance from zero to the farther end of the interval; infinity without an interval."""
        return math.inf if self.low is None or self.high is None else max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return short(self.value)
        return f"{short(self.value)} ({short(self.low)} to {short(self.high)})"


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean of values of several seeds with Student's interval between seeds; no interval for one seed."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    deviation = stdev(values)
    reach = critical_value((1 - level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - reach, mean + reach, deviation)


@dataclass(frozen=True)
class CurveValue:
    """A value of a curve at a step."""

    x: int
    value: Number
    low: float | None
    high: float | None
    n: int | None

    @property
    def estimate(self) -> Estimate:
        """The value with the interval of its items."""
        return Estimate(finite(self.value), self.low, self.high)


def values_of(curve: Curve) -> list[CurveValue]:
    """Return the values of a curve by step."""
    series = curve.series
    return list(map(CurveValue, series.x, series.last, series.low, series.high, series.n))


def finite(value: float | str) -> float:
    """Return a number of the history. Raises LookupError for NaN and infinities, which the history has as words."""
    if isinstance(value, str):
        raise LookupError(f"the history has {value} where a finding needs a number")
    return value


def short(number: float) -> str:
    """Return a number with three significant digits, and with a minus sign instead of a hyphen."""
    digits = f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"
    return digits.replace("-", "−")


def mean_curve(curves: Sequence[Curve], label: str) -> Curve:
    """Return the mean of the curves of several seeds, with intervals between seeds; of one curve, the curve itself."""
    first = curves[0].series
    if len(curves) == 1:
        return Curve(label, first)
    assert all(curve.series.x == first.x for curve in curves), "runs of all seeds have the same checkpoints"
    columns = zip(*(curve.series.last for curve in curves), strict=True)
    estimates = [over_seeds(list(map(finite, column))) for column in columns]
    rows = [(x, item.value, item.low, item.high, len(curves)) for x, item in zip(first.x, estimates, strict=True)]
    return plain_curve(label, first.metric, first.unit, rows, first.protocol, first.baseline)


def estimated_curve(label: str, metric: str, unit: str, rows: Iterable[tuple[int, Estimate]]) -> Curve:
    """Return a curve of estimates that are no series of the history, such as differences."""
    plain = ((step, estimate.value, estimate.low, estimate.high, None) for step, estimate in rows)
    return plain_curve(label, metric, unit, plain, label)
