"""Differences between two runs, step by step, and the steps at which a difference enters or leaves the noise.

At each step the two checkpoints are compared as by `evalsvc compare`, paired over their items. The curve answers from
which step on the difference is indistinguishable from zero, and has the largest difference that the intervals from this
step on do not exclude. The noise covers the sampling of items, not a repetition of the training.

With many steps, some differences exceed the noise by chance. A *pointwise* interval holds the true difference at its
step with probability `level`. A *simultaneous* band holds all true differences together with at least this probability:
each of its k intervals has the level 1 − (1 − level) / k, by Bonferroni, however the steps depend on each other.
That a difference changes its sign, or stays apart up to the last step, always rests on the simultaneous band. That it
stays closed rests on pointwise intervals: the band grows with the number of steps, and would close every gap.

The newest values of a run get verdicts against the run's best values so far, and against the values of the base:
measured values as by `evalsvc compare`, and imported values by their own standard errors, if both are known. The best
of K values is partly luck: at `LEVEL`, the newest of 20 equal checkpoints would be worse than the best in a fifth of
runs. So its verdict has the level 1 − (1 − LEVEL) / (K − 1), by Bonferroni.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from evalsvc.compare.comparison import Options, other_protocols, require_known
from evalsvc.compare.contrast import APART, Contrast, allowed_by, apart, contrast_results
from evalsvc.compare.result import Result, task_of
from evalsvc.errors import ItemsLost
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.intervals import LEVEL
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.documents.comparisons import Band, CrossingBands, Crossings, DifferenceCurve, RunComparison, Verdict
from evalsvc.spec.documents.history import BestPoint, HeadlineSeries, NewestVerdict, OtherSide, Point
from evalsvc.spec.documents.results import TaskMetric
from evalsvc.spec.names import checkpoint_name
from evalsvc.spec.protocol import describe_differences, number_to_json, plain_json, tell_apart

COUNTED = ("basis", "n", "groups", "n_only_a", "n_only_b")

Place = tuple[str, str]
"""Key of a curve: a metric, and the id of its protocol, or both ids where the sides differ."""


@dataclass
class _Steps:
    curves: dict[Place, list[tuple[int, Contrast]]] = field(default_factory=dict)
    metrics: dict[tuple[str, str], TaskMetric] = field(default_factory=dict)
    contents: dict[str, Mapping[str, object]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Reason why a metric is left out at some step, by metric."""
    across: set[str | None] = field(default_factory=set)
    """Differences across which the values that are left out can be compared."""

    def add(self, step: int, before: Result, after: Result, options: Options) -> None:
        """Add the contrasts of one step, without the results per item, to save memory."""
        for metric in (*before.document.metrics, *after.document.metrics):
            self.metrics.setdefault((metric.name, task_of(metric)), metric)
        self.contents |= {**before.document.protocols, **after.document.protocols}
        for contrast in contrast_results(
            before, after, options.wants, options.tasks, force=options.force, across=options.across
        ):
            if contrast.distance is not None:
                ids = [side.metric.protocol for side in (contrast.a, contrast.b) if side is not None]
                place = contrast.metric.name, " → ".join(dict.fromkeys(ids))
                self.curves.setdefault(place, []).append((step, contrast.without_items()))
            elif contrast.differing:
                reason = f"at step {step} {describe_differences(contrast.differing)}"
                self.refused.setdefault(contrast.metric.name, reason)
                self.across.add(allowed_by(contrast.differing))


def difference_curves(
    a: str, b: str, pairs: Iterable[tuple[int, Result, Result]], options: Options, band: Band = "pointwise"
) -> RunComparison:
    """Compare two runs at the steps of `pairs`, which are (step, result of a, result of b).

    A metric that was measured by different protocols at a step is left out at that step, and `refused` names the fields
    that differ.
    """
    steps = _Steps()
    for step, before, after in pairs:
        steps.add(step, before, after, options)
    require_known(list(steps.metrics.values()), options, f"{a} or {b}")
    if steps.refused and not steps.curves:
        raise other_protocols(a, b, steps.refused.items(), steps.across)
    differs = tell_apart(steps.curves, steps.contents)
    return RunComparison(
        a=a,
        b=b,
        x="step",
        level=options.level,
        band=band,
        crossings_rest_on=CrossingBands(first_indistinguishable=band, first_apart=band),
        forced=options.force,
        across=list(options.across),
        curves=[_curve(rows, options.level, band, plain_json(differs[place])) for place, rows in steps.curves.items()],
        refused=steps.refused,
    )


def _curve(
    rows: Sequence[tuple[int, Contrast]], level: float, band: Band, differs: dict[str, object]
) -> DifferenceCurve:
    steps, contrasts = [step for step, _ in rows], [contrast for _, contrast in rows]
    distances = [contrast.distance for contrast in contrasts if contrast.distance is not None]
    simultaneous_level = level_of_looks(level, sum(distance.p_value() is not None for distance in distances))
    simultaneous = [contrast.verdict(simultaneous_level) for contrast in contrasts]
    pointwise = [contrast.verdict(level) for contrast in contrasts]
    step_level, shown = (level, pointwise) if band == "pointwise" else (simultaneous_level, simultaneous)
    intervals = [distance.interval(step_level) for distance in distances]
    ends = [distance.interval(level) for distance in distances]
    farthest = [math.inf if end is None else max(abs(end.low), abs(end.high)) for end in ends]
    counted: dict[str, Any] = {name: [getattr(each, name) for each in distances] for name in COUNTED}
    first = contrasts[0].metric
    return DifferenceCurve(
        metric=first.name,
        task=task_of(first),
        unit=first.unit,
        direction=first.direction,
        protocol=None if contrasts[0].differing else first.protocol,
        differs=differs,
        step_level=step_level,
        simultaneous_level=simultaneous_level,
        x=steps,
        a=[contrast.a.metric.value for contrast in contrasts if contrast.a],
        a_stderr=[contrast.a.metric.stderr for contrast in contrasts if contrast.a],
        b=[contrast.b.metric.value for contrast in contrasts if contrast.b],
        b_stderr=[contrast.b.metric.stderr for contrast in contrasts if contrast.b],
        difference=[number_to_json(distance.value) for distance in distances],
        stderr=[number_to_json(distance.stderr) for distance in distances],
        low=[None if interval is None else number_to_json(interval.low) for interval in intervals],
        high=[None if interval is None else number_to_json(interval.high) for interval in intervals],
        verdict=shown,
        **counted,
        **vars(crossings(steps, shown, pointwise, simultaneous, [each.value for each in distances], farthest)),
    )


def level_of_looks(level: float, looks: int) -> float:
    """Return the level of single intervals, of which `looks` together hold with at least `level`, by Bonferroni."""
    return 1 - (1 - level) / max(looks, 1)


def crossings(
    steps: Sequence[int],
    shown: Sequence[Verdict],
    pointwise: Sequence[Verdict],
    simultaneous: Sequence[Verdict],
    differences: Sequence[float],
    farthest: Sequence[float],
) -> Crossings:
    """Return the steps at which the verdicts change; `shown` are those in the displayed band.

    `farthest` are the ends of the pointwise intervals that are farther from zero. A step without a verdict counts
    neither as apart nor as indistinguishable.
    """
    sides = [
        (step, difference > 0)
        for step, verdict, difference in zip(steps, simultaneous, differences, strict=True)
        if verdict in APART and math.isfinite(difference)
    ]
    changes = [[step, later] for (step, side), (later, other) in pairwise(sides) if side != other]
    closed = _from(steps, [verdict == "indistinguishable" for verdict in pointwise])
    ends = [] if closed is None else [end for step, end in zip(steps, farthest, strict=True) if step >= closed]
    return Crossings(
        first_indistinguishable=_first(steps, [verdict == "indistinguishable" for verdict in shown]),
        indistinguishable_from=closed,
        largest_not_excluded=number_to_json(max(ends, default=None)),
        first_apart=_first(steps, [verdict in APART for verdict in shown]),
        apart_from=_from(steps, [verdict in APART for verdict in simultaneous]),
        sign_changes=changes,
    )


def _first(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    return next((step for step, holds_here in zip(steps, holds, strict=True) if holds_here), None)


def _from(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    first = None
    for step, holds_here in zip(reversed(steps), reversed(holds), strict=True):
        if not holds_here:
            break
        first = step
    return first if steps and first != steps[-1] else None


Read = Callable[[Collection[str]], Mapping[str, Result]]
"""A function that returns the results of checkpoints by their names, RUN@STEP or RUN@STEP:VARIANT, without those of
checkpoints that have none."""

Named = tuple[str, Point]
"""A value with the name of its checkpoint."""


def with_verdicts(run: str, series: Sequence[HeadlineSeries], read: Read) -> list[HeadlineSeries]:
    """Return the headline series of a run with verdicts on their newest values, but not against themselves."""
    sides = [
        ((checkpoint_name(run, item.latest.step, item.variant), item.latest), _others(run, item)) for item in series
    ]
    results = read(_measured(value for newest, others in sides for value in (newest, *others.values())))
    return [
        item.model_copy(
            update={
                "verdicts": [
                    _verdict(item, side, other, newest, results)
                    for side, other in others.items()
                    if other[0] != newest[0]
                ]
            }
        )
        for item, (newest, others) in zip(series, sides, strict=True)
    ]


def _others(run: str, series: HeadlineSeries) -> dict[OtherSide, Named]:
    others: dict[OtherSide, Named] = {}
    if series.best is not None:
        others["best"] = checkpoint_name(run, series.best.step, series.variant), series.best
    if series.base is not None and series.base_name is not None:
        others["base"] = series.base_name, series.base
    return others


def _measured(values: Iterable[Named]) -> set[str]:
    return {name for name, point in values if point.import_ is None}


def _verdict(
    series: HeadlineSeries, side: OtherSide, other: Named, newest: Named, results: Mapping[str, Result]
) -> NewestVerdict:
    distance, (name, point) = _distance(series, other, newest, results), other
    finite, best_of = math.isfinite(distance.value), point.of if isinstance(point, BestPoint) else 1
    level = level_of_looks(LEVEL, best_of - 1)
    return NewestVerdict(
        side=side,
        checkpoint=name,
        difference=number_to_json(distance.value),
        stderr=None if distance.stderr is None else number_to_json(distance.stderr),
        verdict=(distance.verdict(level, series.direction) if finite else None) or "no_error_known",
        basis=distance.basis,
        best_of=best_of,
        level=level,
    )


def near_best(run: str, series: HeadlineSeries, points: Iterable[Point], read: Read) -> list[int]:
    """Return the steps of `points` whose values are not worse than the best one, at the level for the best of K."""
    if series.best is None:
        return []
    best, level = _others(run, series)["best"], level_of_looks(LEVEL, series.best.of - 1)
    values = [(checkpoint_name(run, point.step, series.variant), point) for point in points]
    results, near = read(_measured([best, *values])), set[int]()
    for value in values:
        verdict = _distance(series, best, value, results).verdict(level, series.direction)
        near |= {value[1].step} if verdict in ("indistinguishable", "better") else set()
    return sorted(near - {series.best.step})


def _distance(series: HeadlineSeries, a: Named, b: Named, results: Mapping[str, Result]) -> Distance:
    if {a[0], b[0]} == _measured([a, b]) <= results.keys():
        with suppress(ItemsLost):
            for contrast in contrast_results(results[a[0]], results[b[0]], lambda metric: metric == series.metric):
                if contrast.metric.protocol == series.protocol and contrast.distance is not None:
                    return contrast.distance
    return apart(_ratio(a[1]), _ratio(b[1]), unit=series.unit)


def _ratio(point: Point) -> Ratio:
    return Ratio(float(point.value), point.stderr, point.n or 0, point.groups)
