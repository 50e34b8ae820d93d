"""Documents of comparisons between two checkpoints, and between two runs along their steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evalsvc.spec.documents.document import Document, html_table
from evalsvc.spec.documents.fields import Count, Direction, Number
from evalsvc.spec.documents.results import TaskWarning

Verdict = Literal[
    "better", "worse", "different", "indistinguishable", "no_error_known", "other_protocol", "only_a", "only_b"
]
"""Verdict on b relative to a. `different`: the metric has no better direction. `other_protocol`: the values are not
compared."""

Basis = Literal["paired", "unpaired", "none"]
"""Source of a difference's standard error: paired items, the standard errors of both values, or none."""

Family = Literal["none", "holm"]
"""Scope of the rate of false differences: each metric alone, or all metrics together by Holm's method."""

Band = Literal["pointwise", "simultaneous"]
"""Scope of the intervals along steps: each step alone, or all steps simultaneously."""

Across = Literal["seeds", "sampling"]
"""Difference between protocols across which values are compared: samples of two seeds, or external images and
sampled ones."""

Level = Annotated[float, Field(examples=[0.95])]
"""Probability that an interval holds the true value."""

Fields = Annotated[dict[str, object], Field(examples=[{}])]


class ComparedSide(Document):
    """The value of a metric on one side of a comparison."""

    value: Annotated[Number, Field(examples=[0.431])]
    stderr: Annotated[Number | None, Field(examples=[0.0102])]
    low: Annotated[float | None, Field(examples=[0.411])] = None
    """Lower end of the interval of `value`, of 95 % at any `level`; null if the value has no interval."""
    high: Annotated[float | None, Field(examples=[0.451])] = None
    n: Annotated[Count, Field(examples=[2376])]
    groups: Annotated[Count | None, Field(examples=[None])] = None
    """Independent groups of the `n` items; null if every item is its own group."""
    protocol: Annotated[str, Field(examples=["9a3f0c1d2e4b5a69"])]


class DifferenceInterval(Document):
    """An interval that holds the true difference with probability `level` over samples."""

    low: Annotated[Number, Field(examples=[-0.203])]
    high: Annotated[Number, Field(examples=[-0.155])]
    level: Level


class FlippedItems(Document):
    """Items that only one side gets right; at most `flipped` of each side."""

    only_a: Annotated[list[object], Field(examples=[[0, 3]])]
    only_b: Annotated[list[object], Field(examples=[[7, 12]])]


class RightAnswers(Document):
    """Counts of items by which side gets them right, for a metric that is 1 (right) or 0 (wrong) on each item."""

    both: Annotated[Count, Field(examples=[321])]
    only_a: Annotated[Count, Field(examples=[703])]
    only_b: Annotated[Count, Field(examples=[278])]
    neither: Annotated[Count, Field(examples=[1074])]
    p: Annotated[float, Field(examples=[3.4e-43])]
    """Two-sided exact p-value of McNemar's test that a and b are equally often the only right side."""
    holm: Annotated[float, Field(examples=[2.0e-42])]
    """The p-value `p`, corrected by Holm's method over the `tests` benchmarks that have the metric."""
    tests: Annotated[Count, Field(examples=[6])]
    flipped: FlippedItems


class MetricDifference(Document):
    """The difference between a and b in one metric under one protocol."""

    metric: Annotated[str, Field(examples=["arc_easy/acc"])]
    task: Annotated[str, Field(examples=["language"])]
    unit: Annotated[str, Field(examples=["fraction"])]
    direction: Annotated[Direction, Field(examples=["higher"])]
    verdict: Annotated[Verdict, Field(examples=["worse"])]
    a: ComparedSide | None = None
    b: ComparedSide | None = None
    difference: Annotated[Number | None, Field(examples=[-0.179])] = None
    """b − a; over the shared items where items are paired."""
    stderr: Annotated[Number | None, Field(examples=[0.0121])] = None
    """Standard error of the difference."""
    interval: DifferenceInterval | None = None
    """Interval of the difference; null if there are too few items, or items without variance."""
    p: Annotated[float | None, Field(examples=[3.4e-43])] = None
    """Two-sided p-value of no difference, which decides `verdict`: McNemar's exact p-value for right or wrong items,
    otherwise 1 − level of the widest interval that excludes zero. Null if the standard error is unknown."""
    p_holm: Annotated[float | None, Field(examples=[3.4e-43])] = None
    """The p-value `p`, corrected by Holm's method over the `judged` metrics of the comparison. A companion has the
    corrected p-value of its main metric, or its own `p` if that is larger."""
    basis: Basis = "none"
    """Source of `stderr`."""
    no_error: Annotated[str, Field(examples=[""])] = ""
    """Reason why the difference has no interval; empty if there is an interval, or if nothing is compared."""
    n: Annotated[Count | None, Field(examples=[2376])] = None
    """Number of paired items; without pairs, the number of items of the smaller side."""
    groups: Annotated[Count | None, Field(examples=[None])] = None
    """Independent groups of the `n` items; null if every item is its own group."""
    n_only_a: Annotated[Count, Field(examples=[0])] = 0
    """Items of a that b lacks. The difference leaves these items out."""
    n_only_b: Annotated[Count, Field(examples=[0])] = 0
    """Items of b that a lacks. The difference leaves these items out."""
    differing: Annotated[dict[str, dict[str, object]], Field(examples=[{}])] = {}
    """Fields in which the protocols differ, as `{"a": …, "b": …}`. A side that lacks the field is left out."""
    differs: Fields = {}
    """Fields that distinguish the protocol from other protocols of the metric, where the metric has several rows."""
    answers: RightAnswers | None = None
    """Right answers of both sides, where paired items are right or wrong."""


class ComparisonWarnings(Document):
    """Suspicions about the results of the compared tasks, by side."""

    a: Annotated[list[TaskWarning], Field(examples=[[]])] = []
    b: list[TaskWarning] = []


class Comparison(Document):
    """The difference between two checkpoints, metric by metric."""

    a: Annotated[str, Field(examples=["pretrained@0"])]
    b: Annotated[str, Field(examples=["pretrained@3000"])]
    level: Level
    family: Family = "none"
    judged: Annotated[Count, Field(examples=[1])] = 0
    """Number of metrics whose verdict could be due to chance. A companion, such as the perplexity of a loss, does not
    count unless the request names it."""
    expected_by_chance: Annotated[float | None, Field(examples=[0.05])] = None
    """Number of `better`, `worse` and `different` verdicts expected by chance alone: (1 − level) · `judged`. The number
    holds however the metrics depend on each other; exact tests give fewer. Null for a family, where with probability
    `level` no verdict is due to chance."""
    forced: bool = False
    across: Annotated[list[Across], Field(examples=[[]])] = []
    """Differences between protocols across which values are compared, with pairs by the ids of items."""
    contrasts: list[MetricDifference]
    """Differences in the order of a's metrics, followed by metrics that only b has."""
    warnings: ComparisonWarnings = ComparisonWarnings()

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        parts = ("interval", "low"), ("interval", "high"), ("a", "value"), ("b", "value")
        rows = (
            [item.verdict, item.metric, item.difference, *(getattr(getattr(item, of), part, "") for of, part in parts)]
            for item in self.contrasts
        )
        return html_table(["B is", "metric", "B − A", "from", "to", f"A: {self.a}", f"B: {self.b}"], *rows)


class Crossings(Document):
    """Steps at which a difference enters or leaves the noise; null if there is no such step."""

    first_indistinguishable: Annotated[Count | None, Field(examples=[80])]
    """First step at which the difference is indistinguishable from zero, in the displayed band."""
    indistinguishable_from: Annotated[Count | None, Field(examples=[80])]
    """Step from which on the difference stays indistinguishable from zero, in the pointwise band; null if only the last
    step is."""
    largest_not_excluded: Annotated[Number | None, Field(examples=[0.026])] = None
    """Size of the largest difference that the pointwise intervals from `indistinguishable_from` on do not exclude,
    `Infinity` if one of these steps has no interval; null without such a step."""
    first_apart: Annotated[Count | None, Field(examples=[0])]
    """First step at which the difference exceeds the noise, in the displayed band."""
    apart_from: Annotated[Count | None, Field(examples=[None])]
    """Step from which on the difference stays beyond the noise, in the simultaneous band; null if only the last step
    is."""
    sign_changes: Annotated[list[list[int]], Field(examples=[[]])]
    """Changes of sign, as pairs (last step beyond the noise on one side of zero, first step beyond the noise on the
    other side), in the simultaneous band. Between the two steps the difference was zero."""


class DifferenceCurve(Crossings):
    """Differences b − a of one metric under one protocol, at the steps that both runs have. Lists have one entry per
    step."""

    metric: Annotated[str, Field(examples=["pairs/text"])]
    task: Annotated[str, Field(examples=["pairs"])]
    unit: Annotated[str, Field(examples=["nats/token"])]
    direction: Direction
    protocol: Annotated[str | None, Field(examples=["9a3f0c1d2e4b5a69"])]
    """Id of the protocol; null if the two sides have different protocols."""
    differs: Fields
    """Fields that distinguish the protocol from other protocols of the metric."""
    step_level: Level
    """Level of the interval at a single step."""
    simultaneous_level: Annotated[float, Field(examples=[0.983])]
    """Level of the interval at a single step of the simultaneous band."""
    x: Annotated[list[int], Field(examples=[[0, 80, 160]])]
    a: Annotated[list[Number], Field(examples=[[5.17, 0.53, 0.52]])]
    a_stderr: Annotated[list[Number | None], Field(examples=[[0.03, 0.01, 0.01]])]
    b: Annotated[list[Number], Field(examples=[[6.97, 0.54, 0.52]])]
    b_stderr: Annotated[list[Number | None], Field(examples=[[0.02, 0.01, 0.01]])]
    difference: Annotated[list[Number], Field(examples=[[1.79, 0.01, 0.002]])]
    stderr: Annotated[list[Number | None], Field(examples=[[0.03, 0.008, 0.008]])]
    low: Annotated[list[Number | None], Field(examples=[[1.73, -0.006, -0.014]])]
    high: Annotated[list[Number | None], Field(examples=[[1.85, 0.026, 0.018]])]
    verdict: Annotated[list[Verdict], Field(examples=[["worse", "indistinguishable", "indistinguishable"]])]
    basis: Annotated[list[Basis], Field(examples=[["paired"] * 3])]
    n: Annotated[list[int], Field(examples=[[360] * 3])]
    groups: Annotated[list[int | None], Field(examples=[[None] * 3])]
    n_only_a: Annotated[list[int], Field(examples=[[0] * 3])]
    n_only_b: Annotated[list[int], Field(examples=[[0] * 3])]


class CrossingBands(Document):
    """The band behind each field of `Crossings`."""

    first_indistinguishable: Band
    indistinguishable_from: Annotated[Band, Field(examples=["pointwise"])] = "pointwise"
    first_apart: Band
    apart_from: Annotated[Band, Field(examples=["simultaneous"])] = "simultaneous"
    sign_changes: Annotated[Band, Field(examples=["simultaneous"])] = "simultaneous"


class RunComparison(Document):
    """The difference between two runs, step by step."""

    a: Annotated[str, Field(examples=["pretrained"])]
    b: Annotated[str, Field(examples=["random-init"])]
    x: Annotated[str, Field(examples=["step"])]
    level: Level
    band: Band
    crossings_rest_on: CrossingBands
    forced: bool
    across: Annotated[list[Across], Field(examples=[[]])] = []
    curves: list[DifferenceCurve]
    refused: Annotated[dict[str, str], Field(examples=[{}])]
    """Reason why a metric is left out at some step, by metric."""
