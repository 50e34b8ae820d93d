"""The gate with as few samples as possible: both checkpoints are sampled in step until every metric is decided.

    sample_until_decided → `Trial.judge` at each look, with the bound of that look → decided, or further samples

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.compare.gate import compare, judge_contrasts, ruled_contrasts, tell_comparisons_apart, without_baseline
from evalsvc.compare.gate_report import Alarms, Comparison, Look, Report, Samples
from evalsvc.compare.gate_rules import Rule, Rules
from evalsvc.compare.result import Result
from evalsvc.config import Settings
from evalsvc.metrics.sequential import WIDEST, boundaries, tail_of
from evalsvc.spec.looks import DEFAULT_SPENDING, Spending
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.worker.local import TaskLook, result_document, walk_task

Progress = Callable[[str, int, int | None, str], None]

SIDES = ("candidate", "baseline")


@dataclass(frozen=True)
class Both:
    candidate: Result
    baseline: Result
    units: int
    total: int
    unit: str
    last: bool


@dataclass
class Trial:
    """State of a task while both sides are sampled.

    A look decides a metric if the whole interval is beyond the tolerance, on either side, or if no part of the interval
    is worse by more than the tolerance. The first decision stands. The last look judges a metric as `compare` does: the
    estimate must be beyond the tolerance, and the interval beyond zero. A metric without a standard error is judged at
    the last look only. If the name in a rule begins with the task's name and no metric matches yet, the metric needs
    further samples, and sampling goes on.
    """

    task: str
    rules: Rules
    """Rules, whose level each metric has for itself. For the family `holm`, the level is divided by Bonferroni: equally
    among the tasks, and a task's share equally among its metrics. Holm's steps would need all metrics at one look."""
    tasks: int = 1
    """Number of tasks that share the level of a family."""
    spending: Spending = DEFAULT_SPENDING
    fractions: list[float] = field(default_factory=list)
    """Share of the samples at each look so far, in (0, 1]."""
    settled: dict[tuple[str, int], Comparison] = field(default_factory=dict)
    """Decided comparisons by metric and number among the metric's. The id of the protocol would not name a row at all
    looks: protocols with the number of samples change."""
    looks: list[Look] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    samples: Samples | None = None
    """Samples that were drawn by then; None where a side failed."""
    metrics: int = 0
    """Number of metrics of the task so far, including metrics that need further samples."""
    protocols: dict[str, Mapping[str, object]] = field(default_factory=dict)

    def level(self, rule: Rule) -> float:
        """Return the probability with which all looks together may call an unchanged metric worse."""
        return rule.level if self.rules.family == "none" else rule.level / (self.tasks * max(self.metrics, 1))

    def boundary(self, rule: Rule) -> float:
        """Return the boundary of the newest look in standard errors of a normal distribution; may be infinite."""
        level = 2 * self.level(rule)
        if not self.fractions or not 0 < level < 1:
            return rule.standard_errors
        return min(boundaries(level, tuple(self.fractions), self.spending)[-1], WIDEST)

    def judge(self, both: Both) -> bool:
        """Judge all metrics of the task at one look; return whether the look settles the task."""
        if both.units:
            self.fractions.append(both.units / both.total)
        self.protocols |= {**both.candidate.document.protocols, **both.baseline.document.protocols}
        of_task = [
            rule for rule in self.rules.rules if rule.metric.startswith(f"{self.task}/") and rule.missing == "fail"
        ]
        awaited = [rule for rule in of_task if not any(map(rule.matches, both.baseline.values))]
        ruled = ruled_contrasts(both.candidate, both.baseline, self.rules.rules)
        judged = [rule for rule, contrast in ruled if contrast.distance is not None]
        if judged:
            self.metrics = max(self.metrics, len(judged) + len(awaited))
        chances = [(tail_of(self.boundary(rule)), self.level(rule)) for rule in judged]
        judgements = judge_contrasts(ruled, both.candidate, chances, last=both.last)
        comparisons = tell_comparisons_apart(judgements, self.protocols)
        numbered, rows = Counter[str](), list[tuple[tuple[str, int], Comparison]]()
        for comparison, (rule, _) in zip(comparisons, ruled, strict=True):
            key = comparison.metric, numbered[comparison.metric]
            numbered[comparison.metric] += 1
            rows.append((key, comparison))
            if key not in self.settled:
                decided = _decision(comparison, rule, both.last)
                if decided is not None:
                    self.settled[key] = decided
                if comparison.difference is not None and both.units:
                    self.looks.append(_look(comparison, both, self.boundary(rule), self.level(rule), decided))
        undecided = [comparison.difference for key, comparison in rows if key not in self.settled]
        is_worse = any(comparison.verdict == "worse" for comparison in self.settled.values())
        # Without a standard error, further samples decide nothing.
        is_open = bool(awaited) or any(each is not None and each.stderr is not None for each in undecided)
        if not (both.last or is_worse or (self.settled and not is_open)):
            return False
        self.comparisons = [self.settled.get(key) or _left_open(comparison) for key, comparison in rows]
        if both.units:
            self.samples = Samples(self.task, both.units, both.total, both.unit, len(self.fractions))
        return True


def report_trials(trials: Sequence[Trial], candidate: Result, baseline: Result) -> Report:
    """Return the report on settled trials of all tasks; the results are those of the last looks."""
    if not baseline.values:
        return without_baseline(candidate.name, baseline)
    comparisons = [comparison for trial in trials for comparison in trial.comparisons]
    differences = [comparison.difference for comparison in comparisons if comparison.difference is not None]
    levels = [difference.level for difference in differences if difference.level is not None]
    rules = trials[0].rules
    return replace(
        compare(candidate, baseline, rules.rules),
        comparisons=tell_comparisons_apart(comparisons, dict(ChainMap(*(trial.protocols for trial in trials)))),
        looks=tuple(look for trial in trials for look in trial.looks),
        samples=tuple(trial.samples for trial in trials if trial.samples is not None),
        alarms=Alarms.of(levels, "none" if rules.family == "none" else "bonferroni"),
    )


def sample_until_decided(
    refs: tuple[CheckpointRef, CheckpointRef],
    suite: Suite,
    rules: Rules,
    settings: Settings,
    progress: Progress,
    show: Callable[[Look], None],
    spending: Spending = DEFAULT_SPENDING,
) -> Report:
    """Sample both sides, task by task, until the task's trial is settled; `show` gets every metric at every look."""
    trials = [Trial(task.name, rules, len(suite.tasks), spending) for task in suite.tasks]
    ends: list[tuple[TaskLook, ...]] = []
    for trial, task in zip(trials, suite.tasks, strict=True):
        walks = [_walk(task, ref, side, settings, progress) for ref, side in zip(refs, SIDES, strict=True)]
        for looks in zip(*walks, strict=False):
            candidate, baseline = _results(suite, refs, [looks])
            units, total = min(look.units for look in looks), max(look.total for look in looks)
            unit, last = looks[0].unit or looks[1].unit, any(look.last for look in looks)
            before = len(trial.looks)
            settled = trial.judge(Both(candidate, baseline, units, total, unit, last))
            for look in trial.looks[before:]:
                show(look)
            if settled:
                ends.append(looks)
                break
    return report_trials(trials, *_results(suite, refs, ends))


def _results(
    suite: Suite, refs: tuple[CheckpointRef, CheckpointRef], looks: Sequence[tuple[TaskLook, ...]]
) -> tuple[Result, Result]:
    candidate, baseline = (
        Result(ref.label, result_document(suite, ref, of_side))
        for ref, of_side in zip(refs, zip(*looks, strict=True), strict=True)
    )
    return candidate, baseline


def _walk(
    task: TaskSpec, checkpoint: CheckpointRef, side: str, settings: Settings, progress: Progress
) -> Iterator[TaskLook]:
    if "until" in task.parameters:  # each side would stop at its own n, and the items would not pair
        task = replace(task, parameters={**task.parameters, "until": None})

    def report(name: str, done: int, total: int | None, unit: str) -> None:
        progress(f"{name}, {side}", done, total, unit)

    return walk_task(task, checkpoint, settings, report, between=True)


def _decision(comparison: Comparison, rule: Rule, last: bool) -> Comparison | None:
    difference = comparison.difference
    if last or comparison.verdict == "other_protocol":
        return comparison
    # Further samples do not make a value finite.
    sides = (comparison.baseline, comparison.candidate)
    if difference is not None and any(value is None or not math.isfinite(value) for value in sides):
        return comparison
    # If all items are alike so far, the error is zero, but further items may differ.
    if difference is None or difference.low is None or not difference.stderr or rule.standard_errors == 0:
        return None
    return comparison if comparison.verdict in ("worse", "better", "within_tolerance") else None


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
