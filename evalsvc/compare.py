"""How far two checkpoints are apart: metric by metric, with an interval of the difference and what it says.

A pure function over two results; which of them is the better one is not presumed, as it is by the gate. Metrics that
were measured by different protocols are refused, with the fields that differ, unless they are forced side by side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from evalsvc.errors import NotComparable, UnknownName
from evalsvc.gate import Result, Service, error_of_difference, number, read_result, task_of
from evalsvc.metrics.paired import LEVEL, Interval, confidence_interval, judge
from evalsvc.protocol import ABSENT, Direction, describe_differences, differences, plain_json

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

Metric = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    metrics: tuple[str, ...] = ()
    """Names, or patterns such as `coco/*`; none: all."""
    level: float = LEVEL
    """How often the interval of a difference holds the truth. Of many metrics some are off by chance."""
    force: bool = False
    """Compare what was measured by different protocols, too; unpaired."""

    def wants(self, name: str) -> bool:
        return not self.metrics or any(name == metric or fnmatchcase(name, metric) for metric in self.metrics)


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
    direction: str
    verdict: Verdict
    a: Side | None = None
    b: Side | None = None
    difference: float | None = None
    """b − a."""
    stderr: float | None = None
    """Of the difference."""
    interval: Interval | None = None
    basis: Literal["paired", "unpaired", "none"] = "none"
    """Where `stderr` comes from: the items that both share, or the errors of the two values."""
    n: int | None = None
    """Items that are paired; else those of the smaller side."""
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """The fields in which the protocols differ, by dotted key; see `protocol.differences`. Not empty where the verdict
    is `other_protocol`, or where it was forced."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able; of `differing`, a side that lacks the field is left out."""
        fields = {
            key: {side: value for side, value in zip("ab", values, strict=True) if value is not ABSENT}
            for key, values in self.differing.items()
        }
        plain: dict[str, Any] = plain_json({**asdict(self), "differing": fields})
        return plain


@dataclass(frozen=True)
class Contrasts:
    """Two results, side by side."""

    a: str
    b: str
    options: Options
    contrasts: tuple[Contrast, ...]
    """In the order of A's metrics, then what only B has."""

    def require_comparable(self) -> None:
        """NotComparable where protocols differ and nothing was forced; the fields are in the message."""
        refused = [contrast for contrast in self.contrasts if contrast.verdict == "other_protocol"]
        if refused:
            found = "; ".join(f"{contrast.metric}: {describe_differences(contrast.differing)}" for contrast in refused)
            raise NotComparable(
                f"{self.a} and {self.b} were measured by different protocols: {found}; evaluate one of the two again, "
                "or compare them all the same with --force"
            )

    def to_json(self) -> str:
        """One document; NaN and infinities are strings."""
        document = {
            "a": self.a,
            "b": self.b,
            "level": self.options.level,
            "forced": self.options.force,
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
        }
        return json.dumps(document, indent=2) + "\n"


def run_compare(a: str, b: str, options: Options, service: Service) -> Contrasts:
    """Compare two results, each a file or RUN@STEP[:VARIANT] of the service as far as it has been evaluated.

    Raises:
        UnknownName: there is no such result, or neither has such a metric.
        InvalidData: a file is not a result.
        InvalidRequest: the level is not between 0 and 1.
        ServiceUnreachable: the service does not answer.
    """
    return compare_results(read_result(a, service), read_result(b, service), options)


def compare_results(a: Result, b: Result, options: Options = Options()) -> Contrasts:
    """Every metric of both that the options want.

    Raises:
        UnknownName: neither has a metric of a name that is asked for.
        InvalidRequest: the level is not between 0 and 1.
    """
    confidence_interval(0.0, 0.0, options.level)
    names = {**a.values, **b.values}
    for wanted in options.metrics:
        if not any(Options((wanted,)).wants(name) for name in names):
            raise UnknownName.among(f"metric of {a.name} or {b.name}", wanted, names)
    found = [contrast for name in names if options.wants(name) for contrast in _contrast_name(name, a, b, options)]
    return Contrasts(a.name, b.name, options, tuple(found))


def _contrast_name(name: str, a: Result, b: Result, options: Options) -> Iterator[Contrast]:
    """One contrast per protocol; those that only one side has are matched with the nearest of the other."""
    ours, theirs = a.values.get(name, {}), dict(b.values.get(name, {}))
    for protocol, metric in ours.items():
        if protocol in theirs:
            yield _compare(metric, theirs.pop(protocol), a, b, options)
            continue
        strange = [other for identity, other in theirs.items() if identity not in ours]
        if not strange:
            yield _contrast(metric, "only_a", a=Side.of(metric))
            continue
        differing, nearest = _nearest(metric, strange, a, b)
        yield _compare_strangers(metric, theirs.pop(nearest["protocol"]), differing, options)
    for metric in theirs.values():
        yield _contrast(metric, "only_b", b=Side.of(metric))


def _nearest(metric: Metric, strange: Sequence[Metric], a: Result, b: Result) -> tuple[dict[str, Any], Metric]:
    """What differs from the protocol that differs least; of files without the contents of protocols, their ids do."""
    content = a.protocol(metric["protocol"])
    found = [(differences(content, b.protocol(other["protocol"])), other) for other in strange]
    differing, nearest = min(found, key=lambda pair: len(pair[0]))
    return differing or {"protocol": (metric["protocol"], nearest["protocol"])}, nearest


def _compare(before: Metric, after: Metric, a: Result, b: Result, options: Options) -> Contrast:
    stderr, basis, n = error_of_difference(before, after, b, a)
    if basis == "unpaired" and None in (before["stderr"], after["stderr"]):
        # What is left is the error of one side, and an interval of it would be too narrow.
        stderr, basis = None, "none"
    return _judged(before, after, options, stderr=stderr, basis=basis, n=n)


def _compare_strangers(before: Metric, after: Metric, differing: Mapping[str, Any], options: Options) -> Contrast:
    if not options.force:
        return _contrast(before, "other_protocol", a=Side.of(before), b=Side.of(after), differing=differing)
    errors = [number(metric["stderr"]) for metric in (before, after) if metric["stderr"] is not None]
    known = len(errors) == 2 and all(map(math.isfinite, errors))
    return _judged(
        before,
        after,
        options,
        stderr=math.hypot(*errors) if known else None,
        basis="unpaired" if known else "none",
        n=min(before["n"], after["n"]),
        differing=differing,
    )


def _judged(before: Metric, after: Metric, options: Options, *, stderr: float | None, **found: Any) -> Contrast:
    a, b = Side.of(before), Side.of(after)
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    difference = 0.0 if equal else b.value - a.value
    interval = None
    if stderr is not None and math.isfinite(difference):
        interval = confidence_interval(difference, stderr, options.level)
    verdict = _verdict(a.value, b.value, equal, interval, before["direction"])
    return _contrast(before, verdict, a=a, b=b, difference=difference, stderr=stderr, interval=interval, **found)


def _verdict(a: float, b: float, equal: bool, interval: Interval | None, direction: Direction) -> Verdict:
    if interval is not None:
        return judge(interval, direction)
    if equal or (math.isfinite(a) and math.isfinite(b)):
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
