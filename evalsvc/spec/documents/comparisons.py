"""Documents of comparisons: of two checkpoints, and of two runs along their steps."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, Direction, Number
from evalsvc.spec.documents.results import TaskWarning

Verdict = Literal[
    "better",
    "worse",
    "different",
    "indistinguishable",
    "no_error_known",
    "other_protocol",
    "only_a",
    "only_b",
]
"""The verdict on b, against a. `different`: the metric has no better side. `other_protocol`: not compared."""

Basis = Literal["paired", "unpaired", "none"]
"""Where the standard error of a difference comes from: shared items, the errors of both values, or nowhere."""

Family = Literal["none", "holm"]
"""What verdicts hold for: each metric by itself, or by Holm's method all metrics of a comparison together."""

Band = Literal["pointwise", "simultaneous"]
"""What intervals along steps hold for: each step by itself, or all steps at once."""

Level = Annotated[float, Example(0.95)]
"""How often an interval holds the truth."""

Fields = Annotated[dict[str, object], Example({})]


class ComparedSide(Document):
    """A metric of one of two checkpoints."""

    value: Annotated[Number, Example(0.431)]
    stderr: Annotated[Number | None, Example(0.0102)]
    low: Annotated[Number | None, Example(0.411)] = None
    """The lower end of the interval of `value`; null where the value has none."""
    high: Annotated[Number | None, Example(0.451)] = None
    n: Annotated[Count, Example(2376)]
    groups: Annotated[Count | None, Example(None)] = None
    """Independent groups of the `n` items; null where every item is one."""
    protocol: Annotated[str, Example("9a3f0c1d2e4b5a69")]


class DifferenceInterval(Document):
    """An interval that holds the truth with a probability of `level` over samples."""

    low: Annotated[Number, Example(-0.203)]
    high: Annotated[Number, Example(-0.155)]
    level: Level


class FlippedItems(Document):
    """Items that only one side gets right, as many of each side as `flipped` asks for."""

    only_a: Annotated[list[object], Example([0, 3])]
    only_b: Annotated[list[object], Example([7, 12])]


class RightAnswers(Document):
    """A metric whose number is 1 (right) or 0 (wrong) on each item, by who is right."""

    both: Annotated[Count, Example(321)]
    only_a: Annotated[Count, Example(703)]
    only_b: Annotated[Count, Example(278)]
    neither: Annotated[Count, Example(1074)]
    p: Annotated[float, Example(3.4e-43)]
    """Two-sided and exact, that a and b are as often right alone: McNemar's test."""
    holm: Annotated[float, Example(2.0e-42)]
    """`p`, corrected by Holm's method over the `tests` benchmarks that have the metric."""
    tests: Annotated[Count, Example(6)]
    flipped: FlippedItems


class MetricDifference(Document):
    """How far one metric of b is from that of a, under one protocol."""

    metric: Annotated[str, Example("arc_easy/acc")]
    task: Annotated[str, Example("language")]
    unit: Annotated[str, Example("fraction")]
    direction: Annotated[Direction, Example("higher")]
    verdict: Annotated[Verdict, Example("worse")]
    a: ComparedSide | None = None
    b: ComparedSide | None = None
    difference: Annotated[Number | None, Example(-0.179)] = None
    """b − a; of paired items over those that both have."""
    stderr: Annotated[Number | None, Example(0.0121)] = None
    """The standard error of the difference."""
    interval: DifferenceInterval | None = None
    """The interval of the difference; null where too few items, or items without any spread, leave none."""
    p: Annotated[float | None, Example(3.4e-43)] = None
    """The two-sided p-value of no difference, by which `verdict` is found: McNemar's exact one where items are right or
    wrong, else 1 − the level of the widest interval that leaves out zero. Null where the error is not known."""
    p_holm: Annotated[float | None, Example(3.4e-43)] = None
    """`p`, corrected by Holm's method over all metrics of the comparison that have one."""
    basis: Basis = "none"
    """Where `stderr` comes from."""
    no_error: Annotated[str, Example("")] = ""
    """Why the difference has no interval; an empty string where it has one, or where nothing is compared."""
    n: Annotated[Count | None, Example(2376)] = None
    """Items that are paired; without pairs, those of the smaller side."""
    groups: Annotated[Count | None, Example(None)] = None
    """Independent groups of the `n` items; null where every item is one."""
    n_only_a: Annotated[Count, Example(0)] = 0
    """Items of a that b lacks, which the difference leaves out."""
    n_only_b: Annotated[Count, Example(0)] = 0
    """Items of b that a lacks, which the difference leaves out."""
    differing: Annotated[dict[str, dict[str, object]], Example({})] = field(default_factory=dict)
    """The fields in which the protocols differ, as `{"a": …, "b": …}`; a side that lacks the field is left out."""
    differs: Fields = field(default_factory=dict)
    """The fields that tell the protocol from others of the metric, where several rows are of one metric."""
    answers: RightAnswers | None = None
    """The right answers of both sides, where paired items are right or wrong."""


class ComparisonWarnings(Document):
    """What is suspicious about the results of the compared tasks, by side."""

    a: Annotated[list[TaskWarning], Example([])] = field(default_factory=list)
    b: list[TaskWarning] = field(default_factory=list)


class Comparison(Document):
    """How far two checkpoints are apart, metric by metric."""

    a: Annotated[str, Example("pretrained@0")]
    b: Annotated[str, Example("pretrained@3000")]
    level: Level
    family: Family = "none"
    judged: Annotated[Count, Example(1)] = 0
    """Metrics with a verdict that chance could have given."""
    expected_by_chance: Annotated[float | None, Example(0.05)] = None
    """How many metrics would be better, worse or different by chance alone if nothing had changed: (1 − level) ·
    `judged`, however the metrics depend on each other; exact tests give fewer. Null for a family, of which with the
    probability `level` none would."""
    forced: bool = False
    contrasts: list[MetricDifference]
    """In the order of a's metrics, then what only b has."""
    warnings: ComparisonWarnings = field(default_factory=ComparisonWarnings)


class Crossings(Document):
    """Steps at which a difference enters or leaves the noise; null where it never does."""

    first_indistinguishable: Annotated[Count | None, Example(80)]
    """The first step at which the difference is indistinguishable from zero, in the band that is shown."""
    indistinguishable_from: Annotated[Count | None, Example(80)]
    """The step from which on the difference always is, in the simultaneous band; null where that is the last step
    alone, of which "always" says nothing."""
    first_apart: Annotated[Count | None, Example(0)]
    """The first step at which the difference is beyond the noise, in the band that is shown."""
    apart_from: Annotated[Count | None, Example(None)]
    """The step from which on the difference always is, in the simultaneous band; null where that is the last step."""
    sign_changes: Annotated[list[list[int]], Example([])]
    """Each (last step beyond noise on one side of zero, first on the other), in the simultaneous band: in between the
    difference was zero, whether or not there was a step to see it."""


class DifferenceCurve(Crossings):
    """One metric under one protocol, b − a along the steps that both have; the lists have an entry a step."""

    metric: Annotated[str, Example("pairs/text")]
    task: Annotated[str, Example("pairs")]
    unit: Annotated[str, Example("nats/token")]
    direction: Direction
    protocol: Annotated[str | None, Example("9a3f0c1d2e4b5a69")]
    """Null where the two sides have different ones."""
    differs: Fields
    """The fields that tell the protocol from others of the metric."""
    step_level: Level
    """The level of the interval at each step."""
    simultaneous_level: Annotated[float, Example(0.983)]
    """The level of an interval at each step of the simultaneous band."""
    x: Annotated[list[int], Example([0, 80, 160])]
    a: Annotated[list[Number], Example([5.17, 0.53, 0.52])]
    a_stderr: Annotated[list[Number | None], Example([0.03, 0.01, 0.01])]
    b: Annotated[list[Number], Example([6.97, 0.54, 0.52])]
    b_stderr: Annotated[list[Number | None], Example([0.02, 0.01, 0.01])]
    difference: Annotated[list[Number], Example([1.79, 0.01, 0.002])]
    stderr: Annotated[list[Number | None], Example([0.03, 0.008, 0.008])]
    low: Annotated[list[Number | None], Example([1.73, -0.006, -0.014])]
    high: Annotated[list[Number | None], Example([1.85, 0.026, 0.018])]
    verdict: Annotated[list[Verdict], Example(["worse", "indistinguishable", "indistinguishable"])]
    basis: Annotated[list[Basis], Example(["paired"] * 3)]
    n: Annotated[list[int], Example([360] * 3)]
    groups: Annotated[list[int | None], Example([None] * 3)]
    n_only_a: Annotated[list[int], Example([0] * 3)]
    n_only_b: Annotated[list[int], Example([0] * 3)]


class CrossingBands(Document):
    """The band that each of the `Crossings` rests on."""

    first_indistinguishable: Band
    indistinguishable_from: Annotated[Band, Example("simultaneous")] = "simultaneous"
    first_apart: Band
    apart_from: Annotated[Band, Example("simultaneous")] = "simultaneous"
    sign_changes: Annotated[Band, Example("simultaneous")] = "simultaneous"


class RunComparison(Document):
    """How far two runs are apart, step by step."""

    a: Annotated[str, Example("pretrained")]
    b: Annotated[str, Example("random-init")]
    x: Annotated[str, Example("step")]
    level: Level
    band: Band
    crossings_rest_on: CrossingBands
    forced: bool
    curves: list[DifferenceCurve]
    refused: Annotated[dict[str, str], Example({})]
    """Why a metric is left out at some step, by metric."""
