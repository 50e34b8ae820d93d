"""The gate with as few samples as possible: both checkpoints are sampled in step until every metric is decided.

    walk_task for each side → `compare` at each look, with the bound of that look → decided, or further samples

Both sides draw the same prompts with the same noise, so every look compares equal numbers of paired images.
`metrics.sequential` divides the rule's level among the looks. The bound of a look is that of Student's t with the items
of the look, at the share of the level that the look may spend. All looks at an unchanged metric together call the
metric worse as often as a single look at the end.

Source of the boundaries for few items: C. Jennison, B. W. Turnbull, Group Sequential Methods with Applications to
Clinical Trials (2000), section 3.8: the tails of the normal boundaries, with the t distribution of each look.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.compare.gate import Stage, compare, tell_comparisons_apart, without_baseline
from evalsvc.compare.gate_report import Alarms, Comparison, Look, Report, Samples
from evalsvc.compare.gate_rules import Rule
from evalsvc.compare.result import Result
from evalsvc.config import Settings
from evalsvc.metrics.sequential import DEFAULT_SPENDING, WIDEST, Spending, boundaries, tail_of
from evalsvc.spec.documents.comparisons import Family
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.worker.local import TaskLook, result_document, walk_task

Progress = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True)
class Sides:
    """Two checkpoints, and the suite and rules to compare them by."""

    candidate: CheckpointRef
    baseline: CheckpointRef
    suite: Suite
    rules: Sequence[Rule]
    spending: Spending = DEFAULT_SPENDING
    """Division of a rule's level among the looks."""
    family: Family = "none"
    """Scope of a rule's level. For `holm`, the level is divided by Bonferroni: equally among the tasks, and a task's
    share equally among its metrics. Holm's steps would need all metrics at the same look."""


@dataclass(frozen=True)
class Both:
    """Results of both sides at one look."""

    candidate: Result
    baseline: Result
    units: int
    """Number of samples of each side so far."""
    total: int
    """Largest number of samples of each side."""
    unit: str
    last: bool
    """Whether no further samples follow."""


@dataclass
class Trial:
    """State of a task while both sides are sampled."""

    task: str
    rules: Sequence[Rule]
    spending: Spending = DEFAULT_SPENDING
    """Division of a rule's level among the looks."""
    tasks: int | None = None
    """Number of tasks that share the level with all their metrics; None if every metric has the whole level."""
    fractions: list[float] = field(default_factory=list)
    """Share of the samples at each look so far, in (0, 1]."""
    settled: dict[tuple[str, int], Comparison] = field(default_factory=dict)
    """Comparisons that are decided, by metric and by number among the comparisons of the metric."""
    looks: list[Look] = field(default_factory=list)
    """Looks at all metrics so far."""
    metrics: int = 0
    """Number of metrics of the task so far, including metrics that need further samples."""
    protocols: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Contents of the protocols at all looks, by id."""

    def level(self, rule: Rule) -> float:
        """Return the probability with which all looks together may call an unchanged metric worse."""
        return rule.level if self.tasks is None else rule.level / (self.tasks * max(self.metrics, 1))

    def boundary(self, rule: Rule) -> float:
        """Return the boundary of the newest look in standard errors of a normal distribution; may be infinite."""
        level = 2 * self.level(rule)
        if not self.fractions or not 0 < level < 1:
            return rule.standard_errors
        return min(boundaries(level, tuple(self.fractions), self.spending)[-1], WIDEST)


def run_gate_until(sides: Sides, settings: Settings, progress: Progress, show: Callable[[Look], None]) -> Report:
    """Sample both checkpoints, task by task, until every metric that the rules judge is decided or a metric is worse.

    A look decides a metric if the whole interval is beyond the tolerance, on either side, or if no part of the interval
    is worse by more than the tolerance. The first decision stands. The last look judges a metric as `compare` does: the
    estimate must be beyond the tolerance, and the interval beyond zero. A metric without a standard error is judged at
    the last look only. If the name in a rule begins with the task's name and no metric matches yet, the metric needs
    further samples, and sampling goes on.

    `progress` is called as by `run_suite`, and `show` with every metric at every look.

    """
    shared = len(sides.suite.tasks) if sides.family == "holm" else None
    trials = [Trial(task.name, sides.rules, sides.spending, shared) for task in sides.suite.tasks]
    ends = [
        _sample_task(trial, _walk_both(task, sides, settings, progress), sides, show)
        for trial, task in zip(trials, sides.suite.tasks, strict=True)
    ]
    candidate, baseline = (
        Result(ref.label, result_document(sides.suite, ref, [end.pair[side] for end in ends]))
        for side, ref in enumerate((sides.candidate, sides.baseline))
    )
    if not baseline.values:
        return without_baseline(candidate.name, baseline)
    comparisons = [comparison for end in ends for comparison in end.comparisons]
    differences = [comparison.difference for comparison in comparisons if comparison.difference is not None]
    levels = [difference.level for difference in differences if difference.level is not None]
    return replace(
        compare(candidate, baseline, sides.rules),
        comparisons=tell_comparisons_apart(comparisons, dict(ChainMap(*(trial.protocols for trial in trials)))),
        looks=tuple(look for trial in trials for look in trial.looks),
        samples=tuple(end.samples for end in ends if end.samples is not None),
        alarms=Alarms.of(levels, "none" if shared is None else "bonferroni"),
    )


@dataclass(frozen=True)
class _End:
    """State of a task when its sampling stopped."""

    pair: tuple[TaskLook, TaskLook]
    """Last look at the candidate and at the baseline."""
    comparisons: list[Comparison]
    samples: Samples | None
    """Samples that were drawn; None where a side failed."""


def _sample_task(
    trial: Trial, pairs: Iterable[tuple[TaskLook, TaskLook]], sides: Sides, show: Callable[[Look], None]
) -> _End:
    for pair in pairs:
        both = _results(pair, sides)
        trial.protocols |= {**both.candidate.document.protocols, **both.baseline.document.protocols}
        before = len(trial.looks)
        comparisons = judge_look(trial, both)
        for look in trial.looks[before:]:
            show(look)
        if comparisons is not None:
            samples = Samples(trial.task, both.units, both.total, both.unit, len(trial.fractions))
            return _End(pair, comparisons, samples if both.units else None)
    raise AssertionError("the last look settles everything")


def judge_look(trial: Trial, both: Both) -> list[Comparison] | None:
    """Judge all metrics of a task at one look, and record the look in `trial`.

    Return the comparisons to report if the look settles the task, otherwise None.
    """
    if both.units:
        trial.fractions.append(both.units / both.total)
    awaited = [rule for rule in trial.rules if _is_awaited(rule, trial.task, both)]

    def chances(rule: Rule, metrics: int) -> tuple[float, float]:
        trial.metrics = max(trial.metrics, metrics + len(awaited))
        return tail_of(trial.boundary(rule)), trial.level(rule)

    stage = Stage(chances, both.last)
    comparisons = list(_numbered(compare(both.candidate, both.baseline, trial.rules, stage=stage).comparisons))
    known = {**both.baseline.values, **both.candidate.values}
    for key, comparison in comparisons:
        if key not in trial.settled:
            rule = next(rule for rule in trial.rules if rule.judges(comparison.metric, known))
            decided = _decision(comparison, rule, both.last)
            if decided is not None:
                trial.settled[key] = decided
            if comparison.difference is not None and both.units:
                trial.looks.append(_look(comparison, both, trial.boundary(rule), trial.level(rule), decided))
    verdicts = {comparison.verdict for comparison in trial.settled.values()}
    undecided = [
        comparison for key, comparison in comparisons if key not in trial.settled and _may_need_samples(comparison)
    ]
    if both.last or "worse" in verdicts or (trial.settled and not undecided and not awaited):
        return [trial.settled.get(key) or _left_open(comparison) for key, comparison in comparisons]
    return None


def _walk_both(
    task: TaskSpec, sides: Sides, settings: Settings, progress: Progress
) -> Iterator[tuple[TaskLook, TaskLook]]:
    if "until" in task.parameters:  # each side would stop at its own n, and the items would not pair
        task = replace(task, parameters={**task.parameters, "until": None})

    def walk(checkpoint: CheckpointRef, side: str) -> Iterator[TaskLook]:
        def report(name: str, done: int, total: int | None, unit: str) -> None:
            progress(f"{name}, {side}", done, total, unit)

        return walk_task(task, checkpoint, settings, report, between=True)

    return zip(walk(sides.candidate, "candidate"), walk(sides.baseline, "baseline"), strict=False)


def _results(pair: tuple[TaskLook, TaskLook], sides: Sides) -> Both:
    candidate, baseline = pair
    return Both(
        Result(sides.candidate.label, result_document(sides.suite, sides.candidate, [candidate])),
        Result(sides.baseline.label, result_document(sides.suite, sides.baseline, [baseline])),
        min(candidate.units, baseline.units),
        max(candidate.total, baseline.total),
        candidate.unit or baseline.unit,
        candidate.last or baseline.last,
    )


def _decision(comparison: Comparison, rule: Rule, last: bool) -> Comparison | None:
    """Return the comparison to report if this look decides the metric, otherwise None."""
    difference = comparison.difference
    if last or comparison.verdict == "other_protocol":
        return comparison
    # Further samples do not make a value finite.
    if difference is not None and not _is_finite(comparison):
        return comparison
    # If all items are alike so far, the error is zero, but further items may differ.
    if difference is None or difference.low is None or not difference.stderr or rule.standard_errors == 0:
        return None
    return comparison if comparison.verdict in ("worse", "better", "within_tolerance") else None


def _is_finite(comparison: Comparison) -> bool:
    sides = (comparison.baseline, comparison.candidate)
    return all(value is not None and math.isfinite(value) for value in sides)


def _may_need_samples(comparison: Comparison) -> bool:
    """Return whether further samples may decide a metric: they cannot where there is no standard error."""
    return comparison.difference is not None and comparison.difference.stderr is not None


def _is_awaited(rule: Rule, task: str, both: Both) -> bool:
    is_for_task = rule.metric.startswith(f"{task}/") and rule.missing == "fail"
    return is_for_task and not any(rule.matches(name) for name in both.baseline.values)


def _left_open(comparison: Comparison) -> Comparison:
    difference = comparison.difference
    if difference is not None and difference.low is not None:
        return replace(comparison, reason=f"{comparison.reason}; undecided when the sampling stopped")
    if difference is None or comparison.verdict == "not_judged":
        return comparison
    reason = "the noise is not known, and only a part of the samples was drawn"
    return replace(comparison, verdict="ignored", reason=reason)


def _look(comparison: Comparison, both: Both, standard_errors: float, level: float, decided: Comparison | None) -> Look:
    assert comparison.difference is not None
    return Look(
        metric=comparison.metric,
        units=both.units,
        total=both.total,
        unit=both.unit,
        difference=comparison.difference.value,
        stderr=comparison.difference.stderr,
        basis=comparison.basis,
        low=comparison.difference.low,
        high=comparison.difference.high,
        standard_errors=standard_errors,
        level=level,
        verdict="undecided" if decided is None else decided.verdict,
        differs=comparison.differs,
    )


def _numbered(comparisons: Iterable[Comparison]) -> Iterator[tuple[tuple[str, int], Comparison]]:
    """Yield each comparison with its metric and its number among the comparisons of that metric.

    The key names a row at all looks. The id of the protocol does not: protocols with the number of samples change.
    """
    seen: Counter[str] = Counter()
    for comparison in comparisons:
        yield (comparison.metric, seen[comparison.metric]), comparison
        seen[comparison.metric] += 1
