"""How far two values are apart: with which error, on which basis, and what that says.

Comparisons of checkpoints, the gate, curves of differences and the forgetting task ask this module. `contrast_results`
matches the metrics of two results by their protocols; `apart` compares two values, paired over the items that both are
made of. The arithmetic is in `metrics.distance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalsvc.compare.result import Measured, Result, task_of
from evalsvc.metrics.distance import Distance, distance
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.documents.comparisons import Verdict
from evalsvc.spec.documents.results import ResultDocument, TaskMetric
from evalsvc.spec.protocol import differences

_NO_RESULT = Result("", ResultDocument(metrics=[]))

APART = ("better", "worse", "different")
"""Verdicts of a difference that has left the noise."""

Differences = Mapping[str, tuple[object, object]]
"""The fields in which two protocols differ, by dotted key; see `protocol.differences`."""


@dataclass(frozen=True)
class Contrast:
    """One metric of two results, or of the only one that has the metric."""

    a: Measured | None
    b: Measured | None
    distance: Distance | None = None
    """How far b is from a; None where one side lacks the metric, or where the protocols differ and `force` is off."""
    differing: Differences = field(default_factory=dict)
    """The fields in which the protocols of the two sides differ; empty where both have one protocol."""

    @property
    def measured(self) -> Measured:
        """The side whose name, unit and direction count: a where a has the metric, else b."""
        side = self.a or self.b
        assert side is not None, "one side has the metric"
        return side

    @property
    def metric(self) -> TaskMetric:
        """The metric of `measured`."""
        return self.measured.metric

    def without_items(self) -> Contrast:
        """Return the contrast without its results, which hold all results per item."""
        a, b = (side and Measured(side.metric, _NO_RESULT) for side in (self.a, self.b))
        return replace(self, a=a, b=b)

    def worse(self, higher_is_better: bool) -> float:
        """Return how much worse b is than a, 0 if both are equal; NaN is as bad as a value gets.

        NaN where the two are not compared.
        """
        if self.a is None or self.b is None or self.distance is None:
            return math.nan
        sign = -1.0 if higher_is_better else 1.0
        old, new = (
            math.inf if math.isnan(side.estimate.value) else sign * side.estimate.value for side in (self.a, self.b)
        )
        if old == new or math.isinf(old) or math.isinf(new):
            return 0.0 if old == new else new - old
        return sign * self.distance.value

    def verdict(self, level: float) -> Verdict:
        """Return what the difference says of b at a level; each verdict holds by itself."""
        if self.a is None or self.b is None:
            return "only_b" if self.a is None else "only_a"
        if self.distance is None:
            return "other_protocol"
        direction = self.metric.direction
        if math.isfinite(self.distance.value):
            return self.distance.verdict(level, direction) or "no_error_known"
        # An infinity is no matter of chance.
        if direction == "none":
            return "different"
        worse = self.worse(direction == "higher")
        return "worse" if worse > 0 else "better" if worse < 0 else "no_error_known"


def apart(
    a: Ratio,
    b: Ratio,
    pairs: tuple[Numbers, Numbers] | None = None,
    *,
    unit: str = "",
    drawn_from: int | None = None,
) -> Distance:
    """Return how far the value b is from a; `pairs` are the items of both sides. See `metrics.distance.distance`."""
    return distance(a, b, pairs, unit=unit, drawn_from=drawn_from)


def distance_between(a: Measured, b: Measured) -> Distance:
    """Return how far a metric of b is from that of a, paired over the items that both have.

    Raises:
        ItemsLost: the service has lost a table of results per item.
    """
    return apart(a.estimate, b.estimate, paired_numbers(a, b), unit=a.metric.unit, drawn_from=a.metric.drawn_from)


def paired_numbers(a: Measured, b: Measured) -> tuple[Numbers, Numbers] | None:
    """Return the numbers of both sides, item by item; None where the sides are not made of the same keys.

    Raises:
        ItemsLost: the service has lost a table of results per item.
    """
    keys = a.metric.items
    if not keys or keys != b.metric.items or a.metric.grouped_by != b.metric.grouped_by:
        return None
    return a.result.numbers(a.metric), b.result.numbers(b.metric)


def contrast_results(
    a: Result,
    b: Result,
    wants: Callable[[str], bool] = lambda name: True,
    tasks: Sequence[str] = (),
    *,
    force: bool = False,
) -> Iterator[Contrast]:
    """Yield a contrast for each metric and protocol of either result: in the order of a, then what only b has.

    Values pair by their protocol. A protocol that b lacks is held against the nearest one that a lacks, each of those
    once, and named as another protocol; with `force`, such values are compared, unpaired. `wants` chooses metrics by
    their names, `tasks` by what measured them (none: all).

    Raises:
        ItemsLost: the service has lost a table of results per item.
    """
    for name in {**a.values, **b.values}:
        if not wants(name):
            continue
        ours, theirs = (
            {
                protocol: Measured(metric, side)
                for protocol, metric in side.values.get(name, {}).items()
                if not tasks or task_of(metric) in tasks
            }
            for side in (a, b)
        )
        yield from _contrast_protocols(ours, theirs, force)


def _contrast_protocols(ours: Mapping[str, Measured], theirs: dict[str, Measured], force: bool) -> Iterator[Contrast]:
    """Contrast the values of one metric, which are given by protocol; `theirs` is used up."""
    for protocol, before in ours.items():
        if protocol in theirs:
            after = theirs.pop(protocol)
            yield Contrast(before, after, distance_between(before, after))
            continue
        strange = [other for identity, other in theirs.items() if identity not in ours]
        if not strange:
            yield Contrast(before, None)
            continue
        after, differing = _nearest(before, strange)
        del theirs[after.metric.protocol]
        forced = apart(before.estimate, after.estimate, unit=before.metric.unit) if force else None
        yield Contrast(before, after, forced, differing)
    for after in theirs.values():
        yield Contrast(None, after)


def _nearest(before: Measured, others: Sequence[Measured]) -> tuple[Measured, Differences]:
    """Return the value whose protocol differs least from that of `before`, and the fields that differ.

    Files may lack the contents of protocols; the field that differs is then the protocol itself.
    """
    content = before.result.protocol(before.metric.protocol)
    found = [(other, differences(content, other.result.protocol(other.metric.protocol))) for other in others]
    after, differing = min(found, key=lambda pair: len(pair[1]))
    return after, differing or {"protocol": (before.metric.protocol, after.metric.protocol)}
