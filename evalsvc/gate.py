"""Is a checkpoint worse than a baseline? Metric by metric, beyond a tolerance and beyond the noise.

`run_gate` reads two results, files or what the service holds, and compares them by rules into a Report, whose outcome
is the exit code; `gate_reports` writes it down.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evalsvc.errors import DeadlineExceeded, InvalidRequest, UnknownName
from evalsvc.metrics.paired import Basis
from evalsvc.protocol import describe_differences, differences, labelled, tell_apart
from evalsvc.result import Measured, Result, distance, number, task_of
from evalsvc.result_source import Service, read_result
from evalsvc.suite import check_keys, validation_message


class Outcome(IntEnum):
    """What came of it, and the exit code that says so."""

    PASSED = 0
    REGRESSION = 1
    NOT_JUDGED = 2
    """A metric is missing, was measured by another protocol, or has neither a standard error nor a tolerance; or
    nothing was compared."""
    NO_BASELINE = 3
    TIME_OUT = 4


class Rule(BaseModel):
    """How much worse a metric may be. It is a regression if it is worse by more than the tolerance, which is the larger
    of `absolute` and `relative`, and by more than the noise, which is so many `standard_errors` of the difference. If
    no error of the difference is known, a tolerance that the rule states decides alone; without one, nothing does."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metric: str = Field(min_length=1)
    """A metric's name, or a pattern for several: `arc_*/acc`. Of several rules the first that matches counts."""
    direction: Literal["lower", "higher"] | None = None
    """Which way is better [the metric's own]."""
    absolute: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """So much worse is tolerated, in the metric's unit."""
    relative: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """So much worse is tolerated, as a share of the baseline's value. Rounding on another device moves less."""
    standard_errors: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """So many standard errors are noise; 0: nothing is. By chance alone a metric exceeds 2 of them in the bad direction
    in one build of 44, and 3 in one of 740; a gate looks at many metrics."""
    missing: Literal["fail", "ignore"] = "fail"
    """What it means that the candidate, or the baseline, has no such value."""

    @property
    def states_tolerance(self) -> bool:
        """Whether whoever wrote the rule gave it a tolerance; the default one is for rounding only."""
        return not self.model_fields_set.isdisjoint(("absolute", "relative"))

    def matches(self, name: str) -> bool:
        return name == self.metric or fnmatchcase(name, self.metric)


EVERYTHING = (Rule(metric="*"),)
"""Without rules: every metric that has a better side."""

Verdict = Literal["worse", "better", "unchanged", "missing", "other_protocol", "not_judged", "new", "ignored"]
"""`not_judged`: no error of the difference is known, and the rule states no tolerance. `new`: only the candidate has
the value. `ignored`: missing, as the rule allows."""


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline, and what is known of its error."""

    value: float
    stderr: float | None
    """None: no error is known, and only a tolerance that the rule states can decide."""
    basis: Basis
    n: int
    """Items that are paired; else those of the smaller side."""
    tolerance: float
    """How much worse the rule tolerates."""
    noise: float
    """How much worse it may be by chance: the rule's multiple of `stderr`; 0 where that is not known."""


@dataclass(frozen=True)
class Comparison:
    """One metric under one protocol."""

    metric: str
    task: str
    verdict: Verdict
    reason: str
    """A sentence."""
    protocol: str
    unit: str
    direction: str
    baseline: float | None = None
    candidate: float | None = None
    difference: Difference | None = None
    differs: Mapping[str, Any] = field(default_factory=dict)
    """The fields that tell this protocol apart from the others of the metric, where several rows are of one metric."""

    @property
    def label(self) -> str:
        """The metric's name for people, with what tells its protocol apart."""
        return labelled(self.metric, self.differs)

    @property
    def basis(self) -> Basis:
        """Where the standard error of the difference comes from; `none`, too, where nothing was compared."""
        return "none" if self.difference is None else self.difference.basis


@dataclass(frozen=True)
class Look:
    """One metric at one of the looks at samples that are still drawn; see `gate_until`."""

    metric: str
    units: int
    """Samples of each side so far."""
    total: int
    """Of so many at most."""
    unit: str
    difference: float
    """Candidate minus baseline."""
    stderr: float | None
    basis: Basis
    standard_errors: float
    """So many of them are noise at this look."""
    level: float
    """Of the error, two-sided, that all looks at this metric together may make: ± so many standard errors is an
    interval that covers at all of them with probability 1 - level."""
    verdict: Verdict | Literal["undecided"]
    differs: Mapping[str, Any] = field(default_factory=dict)
    """The fields that tell this protocol apart from the others of the metric, where several rows are of one metric."""

    @property
    def label(self) -> str:
        """The metric's name for people, with what tells its protocol apart."""
        return labelled(self.metric, self.differs)


@dataclass(frozen=True)
class Samples:
    """How many samples of a task the verdicts took."""

    task: str
    units: int
    """Of each side."""
    total: int
    unit: str
    looks: int

    @property
    def saved(self) -> float:
        """The share that was not needed."""
        return 1 - self.units / self.total


@dataclass(frozen=True)
class Report:
    """What the gate found."""

    candidate: str
    baseline: str
    comparisons: tuple[Comparison, ...] = ()
    """In the order of the baseline's metrics."""
    problems: tuple[str, ...] = ()
    """Why it could not be judged, beside what single comparisons say."""
    failed: Outcome | None = None
    """Why nothing could be compared at all."""
    looks: tuple[Look, ...] = ()
    """Of a gate that samples until it is decided: every metric at every look until its decision."""
    samples: tuple[Samples, ...] = ()
    """Likewise, by task."""

    @property
    def outcome(self) -> Outcome:
        """A regression counts before what could not be judged."""
        verdicts = {comparison.verdict for comparison in self.comparisons}
        if self.failed is not None:
            return self.failed
        if "worse" in verdicts:
            return Outcome.REGRESSION
        if self.problems or verdicts & {"missing", "other_protocol", "not_judged"}:
            return Outcome.NOT_JUDGED
        return Outcome.PASSED


# rules


def read_rules(path: Path | None) -> tuple[Rule, ...]:
    """The rules in a YAML file, `rules: [{metric: …, …}, …]`; None: `EVERYTHING`.

    Raises:
        InvalidRequest: says which key of which rule is wrong, with near misses.
    """
    if path is None:
        return EVERYTHING
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"the rules {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the rules {path} are not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise InvalidRequest(f"the rules {path} are {type(content).__name__}; give a mapping with a list `rules`")
    check_keys(f"the rules {path}", content, ("rules",), InvalidRequest)
    rules = content.get("rules")
    if not isinstance(rules, list) or not rules:
        raise InvalidRequest(f"{path} has no list `rules`; give at least one, e.g. `- metric: pairs/*`")
    return tuple(_parse_rule(f"{path}, rule {index + 1}", rule) for index, rule in enumerate(rules))


def _parse_rule(where: str, rule: Any) -> Rule:
    if not isinstance(rule, Mapping):
        raise InvalidRequest(f"{where} is {rule!r}; it must be a mapping with the key `metric`")
    check_keys(where, rule, Rule.model_fields, InvalidRequest)
    try:
        return Rule.model_validate(dict(rule))
    except ValidationError as error:
        raise InvalidRequest(f"{where}: {validation_message(error)}") from None


# reading and comparing


def run_gate(candidate: str, baseline: str, rules: Sequence[Rule], service: Service) -> Report:
    """Compare two results, each a file or RUN@STEP[:VARIANT]; evaluations that are not over are waited for.

    Raises:
        UnknownName: there is no such candidate.
        InvalidData: a file is not a result.
        InvalidRequest: a rule needs a `direction`.
        ServiceUnreachable: the service does not answer.
    """
    deadline = time.monotonic() + service.timeout
    try:
        before = read_result(baseline, service, deadline)
    except UnknownName as error:
        # A name that is wrong for both is no first run: that there is a candidate is found out too.
        read_result(candidate, service)
        return _failed(candidate, baseline, Outcome.NO_BASELINE, error.message)
    except DeadlineExceeded as error:
        return _failed(candidate, baseline, Outcome.TIME_OUT, error.message)
    if not before.values:
        reasons = "".join(f"; {task}: {error['message']}" for task, error in before.errors.items())
        return _failed(candidate, baseline, Outcome.NO_BASELINE, f"{baseline} has no values{reasons}")
    try:
        after = read_result(candidate, service, deadline)
    except DeadlineExceeded as error:
        return _failed(candidate, baseline, Outcome.TIME_OUT, error.message)
    return compare(after, before, rules)


def _failed(candidate: str, baseline: str, outcome: Outcome, problem: str) -> Report:
    return Report(candidate, baseline, problems=(problem,), failed=outcome)


# comparison


def compare(candidate: Result, baseline: Result, rules: Sequence[Rule] = EVERYTHING) -> Report:
    """Judge every metric of the baseline that a rule matches.

    Raises:
        InvalidRequest: a rule without `direction` matches nothing but metrics that have none.
    """
    for rule in rules:
        _require_sides(rule, baseline)
    comparisons: list[Comparison] = []
    for name in {**baseline.values, **candidate.values}:
        first = next((rule for rule in rules if rule.matches(name)), None)
        if first and (_has_side(first, name, baseline) or _has_side(first, name, candidate)):
            comparisons += _compare_name(name, first, candidate, baseline)
    problems = [problem for rule in rules for problem in _unmatched(rule, candidate, baseline)]
    if not problems and all(comparison.verdict in ("new", "ignored") for comparison in comparisons):
        problems.append("nothing was compared: no value of the baseline that the rules ask for is in the candidate")
    told_apart = tell_comparisons_apart(comparisons, {**candidate.protocols, **baseline.protocols})
    return Report(candidate.name, baseline.name, told_apart, tuple(problems))


def tell_comparisons_apart(
    comparisons: Sequence[Comparison], contents: Mapping[str, Mapping[str, Any]]
) -> tuple[Comparison, ...]:
    """Return the comparisons with `differs`; `contents` are the protocols by id."""
    differs = tell_apart([(one.metric, one.protocol) for one in comparisons], contents)
    return tuple(replace(one, differs=differs[one.metric, one.protocol]) for one in comparisons)


def _require_sides(rule: Rule, baseline: Result) -> None:
    """A rule that matches nothing but descriptions would silently do nothing."""
    matched = [name for name in baseline.values if rule.matches(name)]
    if matched and not any(_has_side(rule, name, baseline) for name in matched):
        raise InvalidRequest(
            f"the rule for {rule.metric}: it is not known whether lower or higher is better of {', '.join(matched)}; "
            "give the rule a `direction`"
        )


def _has_side(rule: Rule, name: str, result: Result) -> bool:
    """Whether better can be told from worse."""
    return rule.direction is not None or any(
        metric["direction"] != "none" for metric in result.values.get(name, {}).values()
    )


def _unmatched(rule: Rule, candidate: Result, baseline: Result) -> Iterator[str]:
    """A rule for nothing is a mistake in the rule, or the baseline lacks what should be compared."""
    if rule.missing == "ignore" or any(rule.matches(name) for name in baseline.values):
        return
    if any(rule.matches(name) for name in candidate.values):
        yield f"the rule for {rule.metric} matches no metric of the baseline; make the baseline anew"
    else:
        yield f"a rule matches nothing: {UnknownName.among('metric', rule.metric, baseline.values).message}"


def _compare_name(name: str, rule: Rule, candidate: Result, baseline: Result) -> Iterator[Comparison]:
    """One comparison per protocol under which the baseline has the metric, and per protocol that is new."""
    theirs, ours = baseline.values.get(name, {}), candidate.values.get(name, {})
    strange = [metric for protocol, metric in ours.items() if protocol not in theirs]
    for protocol, before in theirs.items():
        if protocol in ours:
            yield _judge(rule, Measured(before, baseline), Measured(ours[protocol], candidate))
        elif strange:
            yield _refuse(before, strange, candidate, baseline)
        else:
            yield _miss(rule, before, candidate)
    if all(protocol in ours for protocol in theirs):
        for metric in strange:
            yield _comparison(metric, "new", "the baseline has no such value", candidate=number(metric["value"]))


def _judge(rule: Rule, before: Measured, after: Measured) -> Comparison:
    old, new = before.estimate.value, after.estimate.value
    sign = -1.0 if (rule.direction or before.metric["direction"]) == "higher" else 1.0
    worse = _worse(sign * old, sign * new)
    tolerance = max(rule.absolute, rule.relative * abs(old) if math.isfinite(old) else 0.0)
    found = distance(before, after)
    noise = rule.standard_errors * (found.stderr or 0.0)
    difference = Difference(found.value, found.stderr, found.basis, found.n, tolerance, noise)
    unknown = found.why_no_error("the baseline", "the candidate")
    verdict, reason = _verdict(worse, difference, rule, unknown)
    values: dict[str, Any] = {"baseline": old, "candidate": new, "difference": difference}
    return _comparison(before.metric, verdict, reason, rule.direction, **values)


def _verdict(worse: float, difference: Difference, rule: Rule, unknown: str) -> tuple[Verdict, str]:
    """The verdict and its reason; `unknown` says why the difference has no standard error.

    Equal values are within any tolerance, and what is not finite is no matter of chance: both need no bound.
    """
    if worse == 0:
        return "unchanged", "equal"
    side = f"{'worse' if worse > 0 else 'better'} by {abs(worse):.3g}"
    if unknown and math.isfinite(worse) and not rule.states_tolerance:
        remedy = "give its rule (--rules) a tolerance, `absolute` or `relative`, which then decides alone"
        return "not_judged", f"{side}, but it is not known what is noise: {unknown}; {remedy}"
    within = abs(worse) <= max(difference.tolerance, difference.noise)
    verdict: Verdict = "unchanged" if within else "worse" if worse > 0 else "better"
    return verdict, f"{side}, {'within' if within else 'beyond'} {_bound(within, difference, unknown)}"


def _bound(within: bool, difference: Difference, unknown: str) -> str:
    tolerance, noise = f"the tolerance {difference.tolerance:.2g}", f"the noise {difference.noise:.2g}"
    if unknown:
        return f"{tolerance}, which alone decides: {unknown}"
    if within:
        return noise if difference.noise > difference.tolerance else tolerance
    return f"{tolerance} and {noise}"


def _worse(old: float, new: float) -> float:
    """How much worse `new` is where lower is better. NaN is as bad as it gets."""
    old, new = (math.inf if math.isnan(value) else value for value in (old, new))
    return 0.0 if old == new else new - old


def _refuse(
    before: Mapping[str, Any], strange: Sequence[Mapping[str, Any]], candidate: Result, baseline: Result
) -> Comparison:
    """Name what differs from the nearest of the candidate's protocols."""
    content = baseline.protocol(before["protocol"])
    after, differing = min(
        ((metric, differences(content, candidate.protocol(metric["protocol"]))) for metric in strange),
        key=lambda pair: len(pair[1]),
    )
    fields = describe_differences(differing) or f"{before['protocol']} → {after['protocol']}"
    reason = f"measured by another protocol and not comparable: {fields}; evaluate one of the two again"
    return _comparison(
        before, "other_protocol", reason, baseline=number(before["value"]), candidate=number(after["value"])
    )


def _miss(rule: Rule, before: Mapping[str, Any], candidate: Result) -> Comparison:
    error = candidate.error(task_of(before))
    reason = f"the candidate's task {task_of(before)} failed: {error}" if error else "not in the candidate"
    verdict: Verdict = "missing" if rule.missing == "fail" else "ignored"
    return _comparison(before, verdict, reason, rule.direction, baseline=number(before["value"]))


def _comparison(
    metric: Mapping[str, Any], verdict: Verdict, reason: str, direction: str | None = None, **values: Any
) -> Comparison:
    return Comparison(
        metric=metric["name"],
        task=task_of(metric),
        verdict=verdict,
        reason=reason,
        protocol=metric["protocol"],
        unit=metric["unit"],
        direction=direction or metric["direction"],
        **values,
    )
