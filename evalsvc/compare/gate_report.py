"""The report of a gate: its comparisons, the looks at samples, the false alarms, and the outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from evalsvc.compare.gate_verdict import Difference, Verdict
from evalsvc.spec.documents.comparisons import Basis
from evalsvc.spec.protocol import labelled


class Outcome(IntEnum):
    """Outcome of a gate, and its exit code."""

    PASSED = 0
    REGRESSION = 1
    NOT_JUDGED = 2
    """Outcome where a metric has the verdict `missing`, `other_protocol` or `not_judged`, and where nothing was
    compared."""
    NO_BASELINE = 3
    TIME_OUT = 4


@dataclass(frozen=True)
class Comparison:
    metric: str
    task: str
    verdict: Verdict
    reason: str
    protocol: str
    unit: str
    direction: str
    baseline: float | None = None
    candidate: float | None = None
    difference: Difference | None = None
    differs: Mapping[str, object] = field(default_factory=dict)
    """Fields that distinguish the protocol from other protocols of the metric, where the metric has several rows."""

    @property
    def label(self) -> str:
        return labelled(self.metric, self.differs)

    @property
    def basis(self) -> Basis:
        """The source of the difference's standard error; `none` also where nothing was compared."""
        return "none" if self.difference is None else self.difference.basis


@dataclass(frozen=True)
class Look:
    """State of one metric at one look, while samples are still drawn; see `worker.trial`."""

    metric: str
    units: int
    """Number of samples of each side so far, of at most `total`."""
    total: int
    unit: str
    difference: float
    stderr: float | None
    basis: Basis
    low: float | None
    """Lower end of the interval that holds at all looks together; None if the interval is not known."""
    high: float | None
    standard_errors: float
    """Boundary of this look: the tail of a normal distribution beyond so many standard errors is the probability with
    which each end of the interval may miss the true difference."""
    level: float
    """Probability that all looks at this metric together call an unchanged metric worse. Each end of all intervals of
    the metric together misses the true difference with this probability."""
    verdict: Verdict | Literal["undecided"]
    differs: Mapping[str, object] = field(default_factory=dict)
    """Fields that distinguish the protocol from other protocols of the metric, where the metric has several rows."""

    @property
    def label(self) -> str:
        return labelled(self.metric, self.differs)


@dataclass(frozen=True)
class Samples:
    """Number of samples of a task that the verdicts took."""

    task: str
    units: int
    total: int
    unit: str
    looks: int

    @property
    def saved(self) -> float:
        return 1 - self.units / self.total


@dataclass(frozen=True)
class Alarms:
    """False alarms: how often the gate as a whole fails a checkpoint that did not change."""

    family: Literal["none", "holm", "bonferroni"]
    """Scope of a rule's level: `none` for each metric alone, otherwise all metrics together."""
    metrics: int
    """Number of judged metrics whose verdict could be due to chance."""
    lowest: float
    highest: float
    """Smallest and largest level of a metric."""
    if_independent: float
    """Probability that at least one unchanged metric is called worse, for independent metrics: 1 − Π (1 − level)."""
    at_most: float
    """Upper bound of the same probability for metrics that depend on each other: Σ level."""

    @classmethod
    def of(cls, levels: Sequence[float], family: Literal["none", "holm", "bonferroni"]) -> Alarms | None:
        """Return the false alarms of metrics with these levels; None without metrics."""
        if not levels:
            return None
        passes = math.fsum(math.log1p(-level) for level in levels)
        bounded = min(1.0, math.fsum(levels))
        return cls(family, len(levels), min(levels), max(levels), -math.expm1(passes), bounded)


@dataclass(frozen=True)
class Report:
    candidate: str
    baseline: str
    comparisons: tuple[Comparison, ...] = ()
    problems: tuple[str, ...] = ()
    """Reasons why the gate could not judge, in addition to the reasons of single comparisons."""
    failed: Outcome | None = None
    """Outcome of a gate that compared nothing; None if something was compared."""
    looks: tuple[Look, ...] = ()
    samples: tuple[Samples, ...] = ()
    alarms: Alarms | None = None
    """False alarms; None where no metric is judged by its noise."""

    @property
    def outcome(self) -> Outcome:
        """The outcome; a regression takes precedence over a metric that could not be judged."""
        verdicts = {comparison.verdict for comparison in self.comparisons}
        if self.failed is not None:
            return self.failed
        if "worse" in verdicts:
            return Outcome.REGRESSION
        if self.problems or verdicts & {"missing", "other_protocol", "not_judged"}:
            return Outcome.NOT_JUDGED
        return Outcome.PASSED
