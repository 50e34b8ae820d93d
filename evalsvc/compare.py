"""How far two checkpoints are apart: metric by metric, with an interval of the difference and what it says.

A pure function over two results, the same for files and in the service; which of them is the better one is not
presumed, as it is by the gate. Metrics that were measured by different protocols are refused, with the fields that
differ, unless they are forced side by side. Of a metric that is right or wrong on each item there are also the counts
of McNemar's test, and the items on which the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from evalsvc.errors import NotComparable, UnknownName
from evalsvc.metrics import paired
from evalsvc.metrics.intervals import LEVEL, Interval, require_level
from evalsvc.metrics.mcnemar import McNemar, holm, mcnemar
from evalsvc.metrics.paired import Basis, Distance, Numbers, aligned
from evalsvc.protocol import (
    Direction,
    describe_differences,
    differences,
    differences_from_json,
    differences_to_json,
    plain_json,
    tell_apart,
)
from evalsvc.result import Measured, Metric, Result, distance, number, paired_numbers, task_of

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


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    metrics: tuple[str, ...] = ()
    """Names, or patterns such as `coco/*`; none: all."""
    tasks: tuple[str, ...] = ()
    """Only what these tasks measured; none: all."""
    level: float = LEVEL
    """How often the interval of a difference holds the truth. Of many metrics some are off by chance."""
    force: bool = False
    """Compare what was measured by different protocols, too; unpaired."""
    flipped: int = 0
    """How many of the items that only one of the two gets right are named, of each side."""

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
    n: int
    protocol: str

    @classmethod
    def of(cls, metric: Metric) -> Side:
        stderr = None if metric["stderr"] is None else number(metric["stderr"])
        return cls(number(metric["value"]), stderr, metric["n"], metric["protocol"])


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
    """b − a."""
    stderr: float | None = None
    """Of the difference."""
    interval: Interval | None = None
    basis: Basis = "none"
    """Where `stderr` comes from."""
    no_error: str = ""
    """Why no standard error of the difference is known; an empty string where one is, or where nothing is compared."""
    n: int | None = None
    """Items that are paired; else those of the smaller side."""
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """The fields in which the protocols differ, by dotted key; see `protocol.differences`. Not empty where the verdict
    is `other_protocol`, or where it was forced."""
    distance: Distance | None = None
    """What `interval` and `verdict` follow from at a level."""
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
        kept = asdict(replace(self, answers=None, distance=None))
        del kept["distance"]
        plain: dict[str, Any] = plain_json({**kept, "differing": fields})
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

    def to_json(self) -> dict[str, Any]:
        """JSON-able; NaN and infinities are strings."""
        return {
            "a": self.a,
            "b": self.b,
            "level": self.options.level,
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
    contrasts = tuple(contrast_all(a, b, options))
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
    """The contrast with an interval of another level, and what that says."""
    if contrast.distance is None or (verdict := contrast.distance.verdict(level, contrast.direction)) is None:
        return contrast
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
            yield _contrast(metric, "only_a", a=Side.of(metric))
            continue
        differing, nearest = _nearest(metric, strange, a, b)
        stranger = theirs.pop(nearest["protocol"])
        yield _compare_strangers(Measured(metric, a), Measured(stranger, b), differing, options)
    for metric in theirs.values():
        yield _contrast(metric, "only_b", b=Side.of(metric))


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


def _nearest(metric: Metric, strange: Sequence[Metric], a: Result, b: Result) -> tuple[dict[str, Any], Metric]:
    """What differs from the protocol that differs least; of files without the contents of protocols, their ids do."""
    content = a.protocol(metric["protocol"])
    found = [(differences(content, b.protocol(other["protocol"])), other) for other in strange]
    differing, nearest = min(found, key=lambda pair: len(pair[0]))
    return differing or {"protocol": (metric["protocol"], nearest["protocol"])}, nearest


def _compare(a: Measured, b: Measured, options: Options) -> Contrast:
    found = distance(a, b)
    pairs = paired_numbers(a, b) if found.basis == "paired" else None
    answers = None if pairs is None else _answers(*aligned(*pairs), options.flipped)
    return _judged(a, b, found, options, answers=answers)


def _answers(a: Numbers, b: Numbers, flipped: int) -> Answers | None:
    """Of numbers that are 1 or 0 on every item; else None. Holm's p is known once the others are."""
    if len(a.columns) != 1 or not {*a.columns[0], *b.columns[0]} <= {0.0, 1.0}:
        return None
    right_a, right_b = a.columns[0], b.columns[0]
    counts = mcnemar([one == 1 for one in right_a], [one == 1 for one in right_b])
    rows = list(zip(a.items, right_a, right_b, strict=True))
    only_a = [index for (_, index), x, y in rows if x > y]
    only_b = [index for (_, index), x, y in rows if y > x]
    p = counts.p
    return Answers(counts, p, p, 1, tuple(only_a[:flipped]), tuple(only_b[:flipped]))


def _compare_strangers(a: Measured, b: Measured, differing: Mapping[str, Any], options: Options) -> Contrast:
    if not options.force:
        return _contrast(a.metric, "other_protocol", a=Side.of(a.metric), b=Side.of(b.metric), differing=differing)
    return _judged(a, b, paired.distance(a.estimate, b.estimate), options, differing=differing)


def _judged(a: Measured, b: Measured, found: Distance, options: Options, **more: Any) -> Contrast:
    interval = found.interval(options.level)
    return _contrast(
        a.metric,
        _verdict(a.estimate.value, b.estimate.value, found, options.level, a.metric["direction"]),
        a=Side.of(a.metric),
        b=Side.of(b.metric),
        difference=found.value,
        stderr=found.stderr,
        interval=interval,
        distance=found,
        basis=found.basis,
        no_error=found.why_no_error("A", "B"),
        n=found.n,
        **more,
    )


def _verdict(a: float, b: float, found: Distance, level: float, direction: Direction) -> Verdict:
    if (verdict := found.verdict(level, direction)) is not None:
        return verdict
    if math.isfinite(found.value):
        return "no_error_known"
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
