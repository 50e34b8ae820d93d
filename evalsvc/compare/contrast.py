"""How far two checkpoints are apart: metric by metric, with an interval of the difference and what it says.

A pure function over two results, the same for files and in the service; which of them is the better one is not
presumed, as it is by the gate. Metrics that were measured by different protocols are refused, with the fields that
differ, unless they are forced side by side. Of a metric that is right or wrong on each item there are also the counts
of McNemar's test, and the items on which the two differ.

Each verdict holds at its own level. Of many verdicts some are wrong by chance alone: `Contrasts` counts how many that
would be if nothing had changed, and the family `holm` judges all metrics together, so that with the probability `level`
none is wrong in that case.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from evalsvc.compare.result import Measured, Metric, Result, distance_between, nearest, paired_numbers, task_of
from evalsvc.errors import NotComparable, UnknownName
from evalsvc.metrics.distance import Basis, Distance, distance, judge
from evalsvc.metrics.intervals import LEVEL, Interval, Spread, require_level, value_interval
from evalsvc.metrics.item_numbers import Numbers, aligned
from evalsvc.metrics.mcnemar import McNemar, holm
from evalsvc.spec.protocol import (
    Direction,
    describe_differences,
    differences_from_json,
    differences_to_json,
    plain_json,
    tell_apart,
)

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
"""Of B, against A. `different`: of a metric that has no better side. `other_protocol`: not compared."""

Family = Literal["none", "holm"]
"""What verdicts hold for: each metric by itself, or by Holm's method all metrics of a comparison together."""


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    metrics: tuple[str, ...] = ()
    """Names, or patterns such as `coco/*`; none: all."""
    tasks: tuple[str, ...] = ()
    """Only what these tasks measured; none: all."""
    level: float = LEVEL
    """How often the interval of a difference holds the truth, each by itself."""
    force: bool = False
    """Compare what was measured by different protocols, too; unpaired."""
    flipped: int = 0
    """How many of the items that only one of the two gets right are named, of each side."""
    family: Family = "none"
    """What verdicts hold for: `none`, each metric by itself; `holm`, all metrics of the comparison together."""

    def wants(self, name: str) -> bool:
        return not self.metrics or any(name == metric or fnmatchcase(name, metric) for metric in self.metrics)

    def of_tasks(self, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """Those that the tasks measured."""
        return {key: one for key, one in metrics.items() if not self.tasks or task_of(one) in self.tasks}


@dataclass(frozen=True)
class Answers:
    """A metric whose number is 1 (right) or 0 (wrong) on each item, by who is right."""

    counts: McNemar
    p: float
    """Two-sided and exact, that a and b are as often right alone: McNemar's test."""
    holm: float
    """Corrected for looking at `tests` benchmarks, by Holm's method."""
    tests: int
    """Of this comparison, the metrics that share the second half of their name (`acc`) and have such a p."""
    only_a: tuple[Any, ...]
    """`index` of items that a alone gets right, as many as were asked for; `counts` has all."""
    only_b: tuple[Any, ...]

    def to_json(self) -> dict[str, Any]:
        flipped = {"only_a": list(self.only_a), "only_b": list(self.only_b)}
        return {**asdict(self.counts), "p": self.p, "holm": self.holm, "tests": self.tests, "flipped": flipped}


@dataclass(frozen=True)
class Side:
    """A metric of one of the two."""

    value: float
    stderr: float | None
    low: float | None
    """The lower end of the interval of `value`; None where there is none, see `metrics.intervals.value_interval`."""
    high: float | None
    n: int
    groups: int | None
    """Independent groups of the `n` items; None where every item is one."""
    protocol: str

    @classmethod
    def of(cls, measured: Measured, level: float, items: Spread | None = None) -> Side:
        metric, estimate = measured.metric, measured.estimate
        interval = value_interval(estimate, metric["unit"], level, items)
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        return cls(estimate.value, estimate.stderr, low, high, estimate.n, estimate.groups, metric["protocol"])


@dataclass(frozen=True)
class Contrast:
    """One metric of both, under one protocol."""

    metric: str
    task: str
    unit: str
    direction: Direction
    verdict: Verdict
    a: Side | None = None
    b: Side | None = None
    difference: float | None = None
    """b − a; where items are paired, over the items that both have."""
    stderr: float | None = None
    """Of the difference."""
    interval: Interval | None = None
    """Of the difference; None where too few items, or items without any spread, leave none."""
    p: float | None = None
    """The two-sided p-value of no difference, by which `verdict` is found: McNemar's exact one where items are right or
    wrong, else 1 − the level of the widest interval that leaves out zero. None where nothing is known of the error."""
    p_holm: float | None = None
    """`p`, corrected by Holm's method over all metrics of the comparison that have one."""
    basis: Basis = "none"
    """Where `stderr` comes from."""
    no_error: str = ""
    """Why there is no interval of the difference; an empty string where there is one, or where nothing is compared."""
    n: int | None = None
    """Items that are paired; else those of the smaller side."""
    groups: int | None = None
    """Independent groups of the `n` items; None where every item is one."""
    n_only_a: int = 0
    """Items that b lacks, which are in no pair: `difference` leaves them out, and the value of a has them."""
    n_only_b: int = 0
    """Items that a lacks, likewise."""
    distance: Distance | None = None
    """What `interval`, `p` and `verdict` are from, so that they can be had at another level; not in the JSON."""
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """The fields in which the protocols differ, by dotted key; see `protocol.differences`. Not empty where the verdict
    is `other_protocol`, or where it was forced."""
    answers: Answers | None = None
    """Of a paired metric whose items are right or wrong."""
    differs: Mapping[str, Any] = field(default_factory=dict)
    """The fields that tell this protocol apart from the others of the metric, where several rows are of one metric."""

    @property
    def protocol(self) -> str:
        """The id of the protocol; where the protocols of the two sides differ, that of A."""
        side = self.a or self.b
        return "" if side is None else side.protocol

    def to_json(self) -> dict[str, Any]:
        """JSON-able; of `differing`, a side that lacks the field is left out."""
        fields = differences_to_json(self.differing)
        answers = None if self.answers is None else self.answers.to_json()
        plain: dict[str, Any] = plain_json({**asdict(replace(self, answers=None, distance=None)), "differing": fields})
        del plain["distance"]
        return plain | {"answers": answers}


@dataclass(frozen=True)
class Contrasts:
    """Two results, side by side."""

    a: str
    b: str
    options: Options
    contrasts: tuple[Contrast, ...]
    """In the order of A's metrics, then what only B has."""
    warnings: Mapping[str, Sequence[Mapping[str, str]]]
    """What is suspicious about the results of the compared tasks, by side, `a` and `b`."""

    @property
    def judged(self) -> int:
        """How many metrics have a verdict that chance could have given."""
        return sum(contrast.p is not None for contrast in self.contrasts)

    @property
    def expected_by_chance(self) -> float | None:
        """How many metrics would be better, worse or different by chance alone if nothing had changed; None for a
        family, of which with the probability `level` none would.

        (1 − level) · `judged`, however the metrics depend on each other; exact tests give fewer.
        """
        return (1 - self.options.level) * self.judged if self.options.family == "none" else None

    def to_json(self) -> dict[str, Any]:
        """JSON-able; NaN and infinities are strings."""
        return {
            "a": self.a,
            "b": self.b,
            "level": self.options.level,
            "family": self.options.family,
            "judged": self.judged,
            "expected_by_chance": self.expected_by_chance,
            "forced": self.options.force,
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
            "warnings": {side: list(found) for side, found in self.warnings.items()},
        }


def require_comparable(document: Mapping[str, Any], *, all_of_it: bool = True) -> None:
    """NotComparable where `Contrasts.to_json` has metrics that were measured by different protocols, with the fields.

    Without `all_of_it`, only where nothing else can be compared.
    """
    refused = [one for one in document["contrasts"] if one["verdict"] == "other_protocol"]
    compared = any(one["a"] and one["b"] and one["verdict"] != "other_protocol" for one in document["contrasts"])
    if refused and (all_of_it or not compared):
        found = "; ".join(
            f"{one['metric']}: {describe_differences(differences_from_json(one['differing']))}" for one in refused
        )
        raise NotComparable(
            f"{document['a']} and {document['b']} were measured by different protocols: {found}; evaluate one of the "
            "two again, or compare them all the same: --force (force=true)"
        )


def compare_results(a: Result, b: Result, options: Options = Options()) -> Contrasts:
    """Every metric of both that the options want.

    Raises:
        UnknownName: neither has a metric, or a task, of a name that is asked for.
        InvalidRequest: the level is not between 0 and 1.
        ItemsLost: results per item that the service once had are gone.
    """
    require_known([a, b], options, f"{a.name} or {b.name}")
    contrasts = tuple(_judged_together([*contrast_all(a, b, options)], options))
    tasks = {contrast.task for contrast in contrasts}
    warnings = {side: [*_warnings(result, tasks)] for side, result in (("a", a), ("b", b))}
    return Contrasts(a.name, b.name, options, contrasts, warnings)


def _warnings(result: Result, tasks: Collection[str]) -> Iterator[Mapping[str, str]]:
    for task, warnings in result.warnings.items():
        if task in tasks:
            yield from warnings


def contrast_all(a: Result, b: Result, options: Options) -> Iterator[Contrast]:
    """The contrasts of `compare_results`, of two results that may have nothing of what is asked for."""
    names = {**a.values, **b.values}
    found = [contrast for name in names if options.wants(name) for contrast in _contrast_name(name, a, b, options)]
    contents = {**b.protocols, **a.protocols}
    differs = tell_apart([(contrast.metric, contrast.protocol) for contrast in found], contents)
    return _corrected([replace(one, differs=differs[one.metric, one.protocol]) for one in found])


def judged_at(contrast: Contrast, level: float) -> Contrast:
    """The contrast with the interval of the difference at another level, and the verdict at that level."""
    if contrast.p is None or contrast.distance is None:
        return contrast
    verdict = contrast.distance.verdict(level, contrast.direction) or contrast.verdict
    return replace(contrast, interval=contrast.distance.interval(level), verdict=verdict)


def require_known(results: Iterable[Result], options: Options, whose: str) -> None:
    """Raise unless each metric and task that is asked for is in one of the results, and the level is one."""
    require_level(options.level)
    metrics = [metric for result in results for values in result.values.values() for metric in values.values()]
    names = dict.fromkeys(metric["name"] for metric in metrics)
    for wanted in options.metrics:
        if not any(Options((wanted,)).wants(name) for name in names):
            raise UnknownName.among(f"metric of {whose}", wanted, names)
    tasks = {task_of(metric) for metric in metrics}
    for task in options.tasks:
        if task not in tasks:
            raise UnknownName.among(f"task of {whose}", task, tasks)


def _contrast_name(name: str, a: Result, b: Result, options: Options) -> Iterator[Contrast]:
    """One contrast per protocol; those that only one side has are matched with the nearest of the other."""
    ours, theirs = (options.of_tasks(side.values.get(name, {})) for side in (a, b))
    for protocol, metric in ours.items():
        if protocol in theirs:
            yield _compare(Measured(metric, a), Measured(theirs.pop(protocol), b), options)
            continue
        strange = [other for identity, other in theirs.items() if identity not in ours]
        if not strange:
            yield _contrast(metric, "only_a", a=Side.of(Measured(metric, a), options.level))
            continue
        stranger, differing = nearest(metric, strange, a, b)
        del theirs[stranger["protocol"]]
        differing = differing or {"protocol": (metric["protocol"], stranger["protocol"])}
        yield _compare_strangers(Measured(metric, a), Measured(stranger, b), differing, options)
    for metric in theirs.values():
        yield _contrast(metric, "only_b", b=Side.of(Measured(metric, b), options.level))


def _judged_together(contrasts: Sequence[Contrast], options: Options) -> Iterator[Contrast]:
    """With p-values corrected over all contrasts that have one, and the verdicts of these where the options say so."""
    corrected = iter(holm([contrast.p for contrast in contrasts if contrast.p is not None]))
    for contrast in contrasts:
        if contrast.p is None or contrast.difference is None:
            yield contrast
            continue
        p = next(corrected)
        verdict: Verdict = contrast.verdict
        if options.family == "holm":
            verdict = judge(contrast.difference, p, options.level, contrast.direction)
        yield replace(contrast, p_holm=p, verdict=verdict)


def _corrected(contrasts: Sequence[Contrast]) -> Iterator[Contrast]:
    """With p-values corrected over the benchmarks of each metric."""
    families: dict[str, list[Answers]] = {}
    for contrast in contrasts:
        if contrast.answers is not None:
            families.setdefault(contrast.metric.partition("/")[2], []).append(contrast.answers)
    corrected = {name: iter(holm([one.p for one in family])) for name, family in families.items()}
    for contrast in contrasts:
        if contrast.answers is None:
            yield contrast
            continue
        name = contrast.metric.partition("/")[2]
        answers = replace(contrast.answers, holm=next(corrected[name]), tests=len(families[name]))
        yield replace(contrast, answers=answers)


def _compare(a: Measured, b: Measured, options: Options) -> Contrast:
    found = distance_between(a, b)
    pairs = None if found.flips is None else paired_numbers(a, b)
    answers = None if pairs is None or found.flips is None else _answers(found.flips.counts, *pairs, options.flipped)
    return _judged(a, b, found, options, answers=answers)


def _answers(counts: McNemar, a: Numbers, b: Numbers, flipped: int) -> Answers:
    """Of numbers that are 1 or 0 on every item that both have. Holm's p is known once the others are."""
    a, b = aligned(a, b)
    rows = list(zip(a.items, a.columns[0], b.columns[0], strict=True))
    only_a = [index for (_, index), x, y in rows if x > y]
    only_b = [index for (_, index), x, y in rows if y > x]
    return Answers(counts, counts.p, counts.p, 1, tuple(only_a[:flipped]), tuple(only_b[:flipped]))


def _compare_strangers(a: Measured, b: Measured, differing: Mapping[str, Any], options: Options) -> Contrast:
    if not options.force:
        sides = {name: Side.of(side, options.level) for name, side in (("a", a), ("b", b))}
        return _contrast(a.metric, "other_protocol", **sides, differing=differing)
    found = distance(a.estimate, b.estimate, unit=a.metric["unit"])
    return _judged(a, b, found, options, differing=differing)


def _judged(a: Measured, b: Measured, found: Distance, options: Options, **more: Any) -> Contrast:
    return _contrast(
        a.metric,
        _verdict(a.estimate.value, b.estimate.value, found, options.level, a.metric["direction"]),
        # What is not compared is not worth reading all of its items.
        a=Side.of(a, options.level, a.spread),
        b=Side.of(b, options.level, b.spread),
        difference=found.value,
        stderr=found.stderr,
        interval=found.interval(options.level),
        p=found.p_value(),
        basis=found.basis,
        no_error=found.why_no_error("A", "B"),
        n=found.n,
        groups=found.groups,
        n_only_a=found.n_only_a,
        n_only_b=found.n_only_b,
        distance=found,
        **more,
    )


def _verdict(a: float, b: float, found: Distance, level: float, direction: Direction) -> Verdict:
    if math.isfinite(found.value):
        return found.verdict(level, direction) or "no_error_known"
    # NaN is as bad as it gets, and an infinity is no matter of chance.
    if direction == "none":
        return "different"
    worst = math.inf if direction == "lower" else -math.inf
    a, b = (worst if math.isnan(value) else value for value in (a, b))
    if a == b:
        return "no_error_known"
    return "worse" if (b > a) == (direction == "lower") else "better"


def _contrast(metric: Metric, verdict: Verdict, **found: Any) -> Contrast:
    return Contrast(
        metric=metric["name"],
        task=task_of(metric),
        unit=metric["unit"],
        direction=metric["direction"],
        verdict=verdict,
        **found,
    )
