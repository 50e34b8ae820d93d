"""The contrast of two values: their difference, its standard error and basis, and the verdict.

Comparisons of checkpoints, the gate, curves of differences and the forgetting task share this module. The arithmetic is
in `metrics.distance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalsvc.compare.result import Measured, Result, task_of
from evalsvc.metrics.distance import Distance, distance
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.spec.documents.comparisons import Across, Verdict
from evalsvc.spec.documents.results import ResultDocument, TaskMetric
from evalsvc.spec.protocol import ABSENT, EXTERNAL, Differences, differences

_NO_RESULT = Result("", ResultDocument(metrics=[]))

APART = ("better", "worse", "different")

apart = distance

SEED = frozenset({"sampling.seed"})
"""Field in which the protocols of samples that were drawn with two seeds differ."""

ORIGIN = {"task", "sampling", "select", "engine", "prompts", "size", "weights", "dtype", "rotary"}
ORIGIN |= {"rotary_inv_freq_dtype", "cache_dtype", "decoder", "decoder_dtype", "tokenizer", "layout"}
"""Fields that describe how images came to be; all others describe how images were measured."""

EXTERNAL_AGAINST_SAMPLED = "external images against sampled ones"


def allowed_by(differing: Differences) -> Across | None:
    """Return the choice that allows the comparison of two protocols with these differences; None if none does."""
    if differing and differing.keys() <= SEED:
        return "seeds"
    origins = differing.get("sampling", ())
    is_external = EXTERNAL in origins and any(origin not in (EXTERNAL, ABSENT) for origin in origins)
    return "sampling" if is_external and {key.partition(".")[0] for key in differing} <= ORIGIN else None


@dataclass(frozen=True)
class Contrast:
    """A metric of two results, under one protocol or under the two nearest protocols."""

    a: Measured | None
    b: Measured | None
    """Value of each side; None if the side lacks the metric."""
    distance: Distance | None = None
    """Difference b − a with its error; None if a side lacks the metric, or if other protocols are refused."""
    differing: Differences = field(default_factory=dict)
    """Fields in which the protocols of the two sides differ; empty if both sides have the same protocol."""

    @property
    def measured(self) -> Measured:
        """The side that gives name, unit and direction: a if a has the metric, otherwise b."""
        side = self.a or self.b
        assert side is not None, "a or b has the metric"
        return side

    @property
    def metric(self) -> TaskMetric:
        return self.measured.metric

    def without_items(self) -> Contrast:
        """Return a copy without the two results, which would keep all results per item in memory."""
        a, b = (side and Measured(side.metric, _NO_RESULT) for side in (self.a, self.b))
        return replace(self, a=a, b=b)

    def worse(self, higher_is_better: bool) -> float:
        """Return the worsening from a to b, 0 if both are equal, NaN if not compared; NaN is infinitely bad."""
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
        """Return the verdict on b relative to a at a level, for this metric alone."""
        if self.a is None or self.b is None:
            return "only_b" if self.a is None else "only_a"
        if self.distance is None:
            return "other_protocol"
        direction = self.metric.direction
        if math.isfinite(self.distance.value):
            return self.distance.verdict(level, direction) or "no_error_known"
        # An infinite difference is not due to chance, so no p-value is needed.
        if direction == "none":
            return "different"
        worse = self.worse(direction == "higher")
        return "worse" if worse > 0 else "better" if worse < 0 else "no_error_known"


def paired_numbers(a: Measured, b: Measured, differing: Differences | None = None) -> tuple[Numbers, Numbers] | None:
    """Return the numbers of both sides, item by item; None where the sides are not made of the same keys. Sampled
    images and external images, as `differing` says, are the same item if they have the same id."""
    keys, by = a.metric.items, "id" if allowed_by(differing or {}) == "sampling" else "index"
    if not keys or keys != b.metric.items or a.metric.grouped_by != b.metric.grouped_by:
        return None
    return a.result.numbers(a.metric, by), b.result.numbers(b.metric, by)


def contrast_results(
    a: Result,
    b: Result,
    wants: Callable[[str], bool] = lambda name: True,
    tasks: Sequence[str] = (),
    *,
    force: bool = False,
    across: Collection[Across] = (),
) -> Iterator[Contrast]:
    """Yield a contrast for each metric and protocol of either result: in the order of a, followed by values of b alone.

    Values with the same protocol are compared. A value of a whose protocol b lacks is matched with the value of b under
    the nearest protocol that a lacks, each at most once. Such a match is compared like values with the same protocol if
    the protocols differ only as `across` allows; otherwise only with `force`, without pairs. `wants`
    chooses metrics by name, and `tasks` by the task that measured them; without `tasks`, all are chosen.
    """
    for name in {**a.values, **b.values}:
        if not wants(name):
            continue
        before, after = (
            {
                protocol: Measured(metric, side)
                for protocol, metric in side.values.get(name, {}).items()
                if not tasks or task_of(metric) in tasks
            }
            for side in (a, b)
        )
        yield from _contrast_protocols(before, after, force, across)


def _contrast_protocols(
    of_a: Mapping[str, Measured], of_b: Mapping[str, Measured], force: bool, across: Collection[Across]
) -> Iterator[Contrast]:
    unmatched = dict(of_b)
    for protocol, before in of_a.items():
        if protocol in unmatched:
            yield contrast_between(before, unmatched.pop(protocol))
            continue
        candidates = [value for identity, value in unmatched.items() if identity not in of_a]
        if not candidates:
            yield Contrast(before, None)
            continue
        after, differing = _nearest(before, candidates, across)
        del unmatched[after.metric.protocol]
        if allowed_by(differing) in across:
            yield contrast_between(before, after, differing)
        else:
            forced = apart(before.estimate, after.estimate, unit=before.metric.unit) if force else None
            yield Contrast(before, after, forced, differing)
    for after in unmatched.values():
        yield Contrast(None, after)


def contrast_between(a: Measured, b: Measured, differing: Differences | None = None) -> Contrast:
    """Return the contrast of two values that are compared, paired over the items that both sides have."""
    pairs = paired_numbers(a, b, differing)
    difference = apart(a.estimate, b.estimate, pairs, unit=a.metric.unit, drawn_from=a.metric.drawn_from)
    return Contrast(a, b, difference, differing or {})


def _nearest(
    before: Measured, candidates: Sequence[Measured], across: Collection[Across]
) -> tuple[Measured, Differences]:
    # A file may lack the contents of protocols. The only field is then `protocol`, with both ids.
    content = before.result.protocol(before.metric.protocol)
    pairs = [(value, differences(content, value.result.protocol(value.metric.protocol))) for value in candidates]
    after, differing = min(pairs, key=lambda pair: (allowed_by(pair[1]) not in across, len(pair[1])))
    return after, differing or {"protocol": (before.metric.protocol, after.metric.protocol)}
