"""The gate with as few samples as it takes: both checkpoints are sampled side by side until it is decided.

    walk_task, twice → at each look `compare`, with the noise that a look at this place allows → settled, or go on

Both sides draw the same prompts with the same noise, so every look compares equal numbers of paired images. How much of
the rule's level a look may spend comes from `metrics.sequential`, and the bound that misses with that chance from
Student's t with the items of that look, so that all looks at a metric together call it worse without a change as often
as one look at the end would.

Source of the boundaries for few items: C. Jennison, B. W. Turnbull, Group Sequential Methods with Applications to
Clinical Trials (2000), section 3.8: the tails of the normal boundaries, with the t distribution of each look.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.compare.gate import (
    Alarms,
    Comparison,
    Look,
    Report,
    Samples,
    Stage,
    compare,
    tell_comparisons_apart,
    without_baseline,
)
from evalsvc.compare.gate_rules import Rule
from evalsvc.compare.result import Result
from evalsvc.config import Settings
from evalsvc.metrics.sequential import DEFAULT_SPENDING, WIDEST, Spending, boundaries, tail_of
from evalsvc.spec.documents.comparisons import Family
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.worker.local import TaskLook, result_document, walk_task

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Sides:
    """What is compared, and by what."""

    candidate: CheckpointRef
    baseline: CheckpointRef
    suite: Suite
    rules: Sequence[Rule]
    spending: Spending = DEFAULT_SPENDING
    family: Family = "none"
    """`holm`: the level is that of all metrics together, by Bonferroni: each task has an equal share of it, and each of
    its metrics an equal share of the task's. Holm's steps would need all metrics at one look."""


@dataclass(frozen=True)
class Both:
    """Both sides at one look."""

    candidate: Result
    baseline: Result
    units: int
    total: int
    unit: str
    last: bool


@dataclass
class Trial:
    """One task while it is sampled: what is settled of it, and the looks so far."""

    task: str
    rules: Sequence[Rule]
    spending: Spending = DEFAULT_SPENDING
    tasks: int | None = None
    """With how many tasks and all their metrics the level is shared; None: every metric has the whole level."""
    fractions: list[float] = field(default_factory=list)
    settled: dict[tuple[str, int], Comparison] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    metrics: int = 0
    """The metrics of the task so far, those included that are waited for."""
    protocols: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """The contents of the protocols at all looks, by id."""

    def level(self, rule: Rule) -> float:
        """Return the chance with which all looks together may call a metric worse that did not change."""
        return rule.level if self.tasks is None else rule.level / (self.tasks * max(self.metrics, 1))

    def boundary(self, rule: Rule) -> float:
        """Return the standard errors of a normal distribution that the newest look asks for, infinity included."""
        level = 2 * self.level(rule)
        if not self.fractions or not 0 < level < 1:
            return rule.standard_errors
        return min(boundaries(level, tuple(self.fractions), self.spending)[-1], WIDEST)


def run_gate_until(sides: Sides, settings: Settings, progress: Progress, show: Callable[[Look], None]) -> Report:
    """Sample both checkpoints task by task until every metric that the rules judge is decided, or one is worse.

    A metric is decided at a look when its whole interval is beyond the tolerance, to whichever side, or when no part of
    the interval is worse by more than the tolerance. The first decision stands. At its last look a metric is judged as
    by `compare`: there the estimate must be beyond the tolerance, and the interval beyond zero. A metric without a
    standard error is not judged before that; one that needs more images than there are so far is waited for where a
    rule begins with the task's name.

    `progress` gets what `run_suite` reports; `show` gets every metric at every look.

    Raises:
        InvalidRequest: a rule needs a `direction`.
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
    levels = [one.difference.level for one in comparisons if one.difference and one.difference.level is not None]
    return replace(
        compare(candidate, baseline, sides.rules),
        comparisons=tell_comparisons_apart(comparisons, dict(ChainMap(*(trial.protocols for trial in trials)))),
        looks=tuple(look for trial in trials for look in trial.looks),
        samples=tuple(end.samples for end in ends if end.samples is not None),
        alarms=Alarms.of(levels, "none" if shared is None else "bonferroni"),
    )


@dataclass(frozen=True)
class _End:
    """One task when its sampling stopped."""

    pair: tuple[TaskLook, TaskLook]
    comparisons: list[Comparison]
    samples: Samples | None
    """None where a side failed."""


def _sample_task(
    trial: Trial, pairs: Iterable[tuple[TaskLook, TaskLook]], sides: Sides, show: Callable[[Look], None]
) -> _End:
    for pair in pairs:
        both = _results(pair, sides)
        trial.protocols |= {**both.candidate.document.protocols, **both.baseline.document.protocols}
        before = len(trial.looks)
        found = judge_look(trial, both)
        for look in trial.looks[before:]:
            show(look)
        if found is not None:
            samples = Samples(trial.task, both.units, both.total, both.unit, len(trial.fractions))
            return _End(pair, found, samples if both.units else None)
    raise AssertionError("the last look settles everything")


def judge_look(trial: Trial, both: Both) -> list[Comparison] | None:
    """The comparisons to report, if this look settles the task; else None, and `trial` knows more than before."""
    if both.units:
        trial.fractions.append(both.units / both.total)
    awaited = [rule for rule in trial.rules if _awaited(rule, trial.task, both)]

    def chances(rule: Rule, metrics: int) -> tuple[float, float]:
        trial.metrics = max(trial.metrics, metrics + len(awaited))
        return tail_of(trial.boundary(rule)), trial.level(rule)

    stage = Stage(chances, both.last)
    found = list(_numbered(compare(both.candidate, both.baseline, trial.rules, stage=stage).comparisons))
    for key, comparison in found:
        if key not in trial.settled:
            rule = next(rule for rule in trial.rules if rule.matches(comparison.metric))
            decided = _decision(comparison, rule, both.last)
            if decided is not None:
                trial.settled[key] = decided
            if comparison.difference is not None and both.units:
                trial.looks.append(_look(comparison, both, trial.boundary(rule), trial.level(rule), decided))
    verdicts = {comparison.verdict for comparison in trial.settled.values()}
    open_ = [comparison for key, comparison in found if key not in trial.settled and _may_hold_up(comparison)]
    if both.last or "worse" in verdicts or (trial.settled and not open_ and not awaited):
        return [trial.settled.get(key) or _left_open(comparison) for key, comparison in found]
    return None


def _walk_both(
    task: TaskSpec, sides: Sides, settings: Settings, progress: Progress
) -> Iterator[tuple[TaskLook, TaskLook]]:
    if "until" in task.parameters:  # each side would stop by its own error, at another n
        task = replace(task, parameters={**task.parameters, "until": None})

    def walk(checkpoint: CheckpointRef, side: str) -> Iterator[TaskLook]:
        def report(name: str, done: int, total: int, unit: str) -> None:
            progress(f"{name}, {side}", done, total, unit)

        return walk_task(task, checkpoint, settings, report, between=True)

    return zip(walk(sides.candidate, "candidate"), walk(sides.baseline, "baseline"), strict=False)


def _results(pair: tuple[TaskLook, TaskLook], sides: Sides) -> Both:
    """Where one side failed, its error is its result, and there is no more to come."""
    ours, theirs = pair
    return Both(
        Result(sides.candidate.label, result_document(sides.suite, sides.candidate, [ours])),
        Result(sides.baseline.label, result_document(sides.suite, sides.baseline, [theirs])),
        min(ours.units, theirs.units),
        max(ours.total, theirs.total),
        ours.unit or theirs.unit,
        ours.last or theirs.last,
    )


def _decision(comparison: Comparison, rule: Rule, last: bool) -> Comparison | None:
    """What is to be reported of a metric, if this look decides it."""
    difference = comparison.difference
    if last or comparison.verdict == "other_protocol":
        return comparison
    # What is not finite now will not be so at the end.
    if difference is not None and not _is_finite(comparison):
        return comparison
    # Items that are all alike so far have an error of zero, which proves nothing of the next ones.
    if difference is None or difference.low is None or not difference.stderr or rule.standard_errors == 0:
        return None
    return comparison if comparison.verdict in ("worse", "better", "within_tolerance") else None


def _is_finite(comparison: Comparison) -> bool:
    sides = (comparison.baseline, comparison.candidate)
    return all(value is not None and math.isfinite(value) for value in sides)


def _may_hold_up(comparison: Comparison) -> bool:
    return comparison.difference is not None and comparison.difference.stderr is not None


def _awaited(rule: Rule, task: str, both: Both) -> bool:
    """Whether the rule is for a metric of this task that is not there yet."""
    ours = rule.metric.startswith(f"{task}/") and rule.missing == "fail"
    return ours and not any(rule.matches(name) for name in both.baseline.values)


def _left_open(comparison: Comparison) -> Comparison:
    """A metric that was not decided when the sampling stopped for another reason."""
    difference = comparison.difference
    if difference is not None and difference.low is not None:
        return replace(comparison, reason=f"{comparison.reason}; it was not decided when the sampling stopped")
    if difference is None or comparison.verdict == "not_judged":
        return comparison
    reason = "what is noise is not known, so a part of the samples does not judge it"
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
    """Each with its name and its place among those of this name; protocols may say n and differ from look to look."""
    seen: Counter[str] = Counter()
    for comparison in comparisons:
        yield (comparison.metric, seen[comparison.metric]), comparison
        seen[comparison.metric] += 1
