"""The gate: whether a checkpoint is worse than a baseline by more than the tolerance and the noise, metric by metric.

`run_gate` reads two results, from files or from the service, and compares them by rules. `gate_rules` defines rules,
`gate_verdict` judges one metric by its rule, `gate_report` holds the report, whose outcome is the exit code, and
`reports` formats the report.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from evalsvc.compare.contrast import EXTERNAL_AGAINST_SAMPLED, Contrast, allowed_by, contrast_results
from evalsvc.compare.gate_report import Alarms, Comparison, Outcome, Report
from evalsvc.compare.gate_rules import EVERYTHING, Rule
from evalsvc.compare.gate_verdict import Difference, Gap, Verdict, judge, tails
from evalsvc.compare.result import Result, task_of
from evalsvc.compare.source import Service, read_result
from evalsvc.errors import DeadlineExceeded, InvalidRequest, NonFinite, UnknownName, first_few, is_untried
from evalsvc.metrics.definitions import main_metric
from evalsvc.spec.documents.comparisons import Across, Family
from evalsvc.spec.names import is_checkpoint
from evalsvc.spec.protocol import describe_differences, tell_apart


def run_gate(
    candidate: str,
    baseline: str,
    rules: Sequence[Rule],
    service: Service,
    family: Family = "none",
    across: Collection[Across] = (),
) -> Report:
    """Compare two results, files or RUN@STEP[:VARIANT], after evaluations that have not ended."""
    deadline = time.monotonic() + service.timeout
    try:
        try:
            before = read_result(baseline, service, deadline)
        except UnknownName as error:
            # A missing baseline is normal in a first run. If candidate or suite is missing too, a name is wrong.
            read_result(candidate, service)
            if service.suite is not None and not is_checkpoint(candidate):  # else it has just been checked
                names = [suite.name for suite in service.client.suites()]
                if service.suite not in names:
                    raise UnknownName.among("suite", service.suite, names) from None
            return Report(candidate, baseline, problems=(error.message,), failed=Outcome.NO_BASELINE)
        if not before.values:
            return without_baseline(candidate, before)
        after = read_result(candidate, service, deadline)
    except DeadlineExceeded as error:
        return Report(candidate, baseline, problems=(error.message,), failed=Outcome.TIME_OUT)
    return compare(after, before, rules, family, across)


def without_baseline(candidate: str, baseline: Result) -> Report:
    """Return the report on a baseline without values: NO_BASELINE, as in a first run, but NOT_JUDGED where wrong
    suites, data or options kept the baseline from being measured."""
    errors = baseline.document.errors
    reasons = "".join(f"; {task}: {error.message}" for task, error in errors.items())
    untried = any(is_untried(error.code) for error in errors.values())
    outcome = Outcome.NOT_JUDGED if untried else Outcome.NO_BASELINE
    return Report(candidate, baseline.name, problems=(f"{baseline.name} has no values{reasons}",), failed=outcome)


def compare(
    candidate: Result,
    baseline: Result,
    rules: Sequence[Rule] = EVERYTHING,
    family: Family = "none",
    across: Collection[Across] = (),
) -> Report:
    """Judge every metric of the baseline that a rule matches; protocols may differ as `across` allows."""
    ruled = ruled_contrasts(candidate, baseline, rules, across)
    gaps = [Gap(rule, contrast, contrast.distance) for rule, contrast in ruled if contrast.distance is not None]
    levels = [gap.rule.level for gap in gaps]
    chosen = tails(gaps, levels, family)
    comparisons = judge_contrasts(ruled, candidate, zip(chosen, chosen if family == "holm" else levels, strict=True))
    problems = [problem for rule in rules for problem in _unmatched(rule, candidate, baseline)]
    if not problems and all(comparison.verdict in ("new", "ignored") for comparison in comparisons):
        problems.append("nothing was compared: no value of the baseline that the rules ask for is in the candidate")
    known = [gap.rule.level for gap in gaps if gap.has_noise]
    alarms = Alarms.of([level / len(known) for level in known] if family == "holm" else known, family)
    told_apart = tell_comparisons_apart(comparisons, {**candidate.document.protocols, **baseline.document.protocols})
    return Report(candidate.name, baseline.name, told_apart, tuple(problems), alarms=alarms)


def ruled_contrasts(
    candidate: Result, baseline: Result, rules: Sequence[Rule], across: Collection[Across] = ()
) -> list[tuple[Rule, Contrast]]:
    """Return the contrasts that the rules ask for, each with the first rule that matches the metric.

    A value that only the candidate has is new unless a value of the baseline was refused for its protocol.
    """
    for rule in rules:
        _require_sides(rule, baseline)
    known = {**baseline.values, **candidate.values}

    def rule_for(name: str) -> Rule | None:
        return next((rule for rule in rules if rule.judges(name, known)), None)

    def wants(name: str) -> bool:
        rule = rule_for(name)
        return rule is not None and (_has_side(rule, name, baseline) or _has_side(rule, name, candidate))

    ruled, refused = list[tuple[Rule, Contrast]](), set[str]()
    for contrast in contrast_results(baseline, candidate, wants, across=across):
        name = contrast.metric.name
        if contrast.a is not None and contrast.distance is None:
            refused.add(name)
        if (chosen := rule_for(name)) and (contrast.a or name not in refused):
            ruled.append((chosen, contrast))
    return ruled


def judge_contrasts(
    ruled: Sequence[tuple[Rule, Contrast]],
    candidate: Result,
    chances: Iterable[tuple[float, float]],
    *,
    last: bool = True,
) -> list[Comparison]:
    """Return all comparisons; `chances` are `tail` and `level` of `gate_verdict.judge` per contrast with a distance."""
    remaining, comparisons = iter(chances), []
    for rule, contrast in ruled:
        if contrast.distance is None:
            comparisons.append(_not_compared(rule, contrast, candidate))
            continue
        verdict, reason, difference = judge(Gap(rule, contrast, contrast.distance), *next(remaining), last=last)
        if contrast.differing:
            across = "measured under two seeds"
            if allowed_by(contrast.differing) == "sampling":
                across = EXTERNAL_AGAINST_SAMPLED
            reason = f"{reason}; {across}: {describe_differences(contrast.differing)}"
        comparisons.append(_comparison(contrast, verdict, reason, rule.direction, difference))
    return comparisons


def tell_comparisons_apart(
    comparisons: Sequence[Comparison], contents: Mapping[str, Mapping[str, object]]
) -> tuple[Comparison, ...]:
    differs = tell_apart([(comparison.metric, comparison.protocol) for comparison in comparisons], contents)
    return tuple(
        replace(comparison, differs=differs[comparison.metric, comparison.protocol]) for comparison in comparisons
    )


def _require_sides(rule: Rule, baseline: Result) -> None:
    matched = [name for name in baseline.values if rule.judges(name, baseline.values)]
    if matched and not any(_has_side(rule, name, baseline) for name in matched):
        raise InvalidRequest(
            f"the rule for {rule.metric}: it is not known whether lower or higher is better of {', '.join(matched)}; "
            "give the rule a `direction`"
        )


def _has_side(rule: Rule, name: str, result: Result) -> bool:
    directions = (metric.direction for metric in result.values.get(name, {}).values())
    return rule.direction is not None or any(direction != "none" for direction in directions)


def _unmatched(rule: Rule, candidate: Result, baseline: Result) -> Iterator[str]:
    mains = {name: main_metric(name, baseline.values) for name in baseline.values if rule.matches(name)}
    if mains and not any(rule.judges(name, baseline.values) for name in mains):
        name, main = next(iter(mains.items()))
        cure = f"such as {name}; write the whole name of one, or a rule for {main}"
        yield f"the rule for {rule.metric} matches only metrics that repeat the verdict of another, {cure}"
    if rule.missing == "ignore" or any(rule.matches(name) for name in baseline.values):
        return
    if any(rule.matches(name) for name in candidate.values):
        yield f"the rule for {rule.metric} matches no metric of the baseline; measure the baseline again"
    else:
        yield f"a rule matches nothing: {UnknownName.among('metric', rule.metric, baseline.values).message}"


def _not_compared(rule: Rule, contrast: Contrast, candidate: Result) -> Comparison:
    if contrast.a is None:
        return _comparison(contrast, "new", "the baseline has no such value")
    if contrast.b is not None:
        fields = describe_differences(contrast.differing)
        reason = f"measured by another protocol and not comparable: {fields}; evaluate one of the two again"
        if (across := allowed_by(contrast.differing)) is not None:
            reason += f", or give --across-{across}"
        return _comparison(contrast, "other_protocol", reason)
    error = candidate.error(task_of(contrast.metric))
    reason = "not in the candidate"
    if error is not None:  # all tasks that failed for one cause, so that reports can say the cause once
        errors = candidate.document.errors.items()
        alike = list(dict.fromkeys(name.rpartition("/")[2] for name, other in errors if other == error))
        reason = f"the candidate's task{'s' * (len(alike) > 1)} {first_few(alike, 3)} failed: {error.message}"
    if error is not None and error.code == NonFinite.code:
        # Weights that compute NaN are a regression, not a missing measurement.
        return replace(_comparison(contrast, "worse", reason, rule.direction), candidate=math.nan)
    return _comparison(contrast, "missing" if rule.missing == "fail" else "ignored", reason, rule.direction)


def _comparison(
    contrast: Contrast,
    verdict: Verdict,
    reason: str,
    direction: str | None = None,
    difference: Difference | None = None,
) -> Comparison:
    metric = contrast.metric
    known = metric.protocol, metric.unit, direction or metric.direction
    baseline, candidate = (None if side is None else side.estimate.value for side in (contrast.a, contrast.b))
    return Comparison(metric.name, task_of(metric), verdict, reason, *known, baseline, candidate, difference)
