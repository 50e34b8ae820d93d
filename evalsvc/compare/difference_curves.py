"""How far two runs are apart, step by step, and at which step their difference leaves the noise or re-enters it.

At each step the two checkpoints are compared as `compare` does it, paired over their items. What is asked of the curve
is where the difference is indistinguishable from zero: the text-loss gap of two runs closes at the first such step, and
for good at the step from which on it always is. An indistinguishable difference does not say that there is none, only
that none was found with so many items; and the noise is that of the items, not of another training.

Every step is a look, and of many looks some are off by chance. A *pointwise* interval holds the truth at its own step
with the probability `level`; a *simultaneous* band holds it at all steps at once with at least that: each of its k
intervals has the level 1 − (1 − level) / k, by Bonferroni, however the steps depend on each other. What is said of
several steps (that the difference changed its sign, or stayed on one side of the noise to the end) rests on the
simultaneous band, whichever band is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from evalsvc.compare.comparison import Options, other_protocols, require_known
from evalsvc.compare.contrast import APART, Contrast, contrast_results
from evalsvc.compare.result import Result, task_of
from evalsvc.spec.documents.comparisons import (
    Band,
    CrossingBands,
    Crossings,
    DifferenceCurve,
    RunComparison,
    Verdict,
)
from evalsvc.spec.documents.results import TaskMetric
from evalsvc.spec.protocol import describe_differences, number_to_json, plain_json, tell_apart

Place = tuple[str, str]
"""A metric and the id of its protocol, or those of both sides where they differ."""


@dataclass
class _Along:
    """What the steps of two runs have in common."""

    curves: dict[Place, list[tuple[int, Contrast]]] = field(default_factory=dict)
    metrics: dict[tuple[str, str], TaskMetric] = field(default_factory=dict)
    """One of each name and task, on either side."""
    contents: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Protocols by id."""
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, step: int, before: Result, after: Result, options: Options) -> None:
        """Add the contrasts of one step; the results per item of the step are not kept."""
        for metric in (*before.document.metrics, *after.document.metrics):
            self.metrics.setdefault((metric.name, task_of(metric)), metric)
        self.contents |= {**before.document.protocols, **after.document.protocols}
        for contrast in contrast_results(before, after, options.wants, options.tasks, force=options.force):
            if contrast.distance is not None:
                self.curves.setdefault(_place(contrast), []).append((step, contrast.without_items()))
            elif contrast.differing:
                reason = f"at step {step} {describe_differences(contrast.differing)}"
                self.refused.setdefault(contrast.metric.name, reason)


def difference_curves(
    a: str, b: str, pairs: Iterable[tuple[int, Result, Result]], options: Options, band: Band = "pointwise"
) -> RunComparison:
    """Compare two runs at the steps of `pairs`, which are (step, result of a, result of b).

    A metric that was measured by different protocols at a step is left out there, and `refused` has the fields.

    Raises:
        NotComparable: no metric was measured by one protocol on both sides at any step.
        UnknownName: a metric or a task that is asked for is on neither side.
        InvalidRequest: the level is not between 0 and 1.
        ItemsLost: results per item that the service once had are gone.
    """
    along = _Along()
    for step, before, after in pairs:
        along.add(step, before, after, options)
    require_known(list(along.metrics.values()), options, f"{a} or {b}")
    if along.refused and not along.curves:
        raise other_protocols(a, b, along.refused.items())
    differs = tell_apart(along.curves, along.contents)
    return RunComparison(
        a=a,
        b=b,
        x="step",
        level=options.level,
        band=band,
        crossings_rest_on=CrossingBands(first_indistinguishable=band, first_apart=band),
        forced=options.force,
        curves=[_curve(rows, options.level, band, plain_json(differs[place])) for place, rows in along.curves.items()],
        refused=along.refused,
    )


def _place(contrast: Contrast) -> Place:
    """Return what the curve of the contrast is known by."""
    ids = [side.metric.protocol for side in (contrast.a, contrast.b) if side is not None]
    return contrast.metric.name, " → ".join(dict.fromkeys(ids))


def _curve(
    rows: Sequence[tuple[int, Contrast]], level: float, band: Band, differs: dict[str, object]
) -> DifferenceCurve:
    steps, contrasts = [step for step, _ in rows], [contrast for _, contrast in rows]
    found = [contrast.distance for contrast in contrasts if contrast.distance is not None]
    simultaneous_level = level_of_looks(level, sum(one.p_value() is not None for one in found))
    simultaneous = [contrast.verdict(simultaneous_level) for contrast in contrasts]
    step_level, shown = level, [contrast.verdict(level) for contrast in contrasts]
    if band == "simultaneous":
        step_level, shown = simultaneous_level, simultaneous
    intervals = [one.interval(step_level) for one in found]
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
        difference=[number_to_json(one.value) for one in found],
        stderr=[number_to_json(one.stderr) for one in found],
        low=[None if interval is None else number_to_json(interval.low) for interval in intervals],
        high=[None if interval is None else number_to_json(interval.high) for interval in intervals],
        verdict=shown,
        basis=[one.basis for one in found],
        n=[one.n for one in found],
        groups=[one.groups for one in found],
        n_only_a=[one.n_only_a for one in found],
        n_only_b=[one.n_only_b for one in found],
        **vars(crossings(steps, shown, simultaneous, [one.value for one in found])),
    )


def level_of_looks(level: float, looks: int) -> float:
    """Return the level of each of so many intervals that hold all together with at least `level`, by Bonferroni."""
    return 1 - (1 - level) / max(looks, 1)


def crossings(
    steps: Sequence[int], shown: Sequence[Verdict], simultaneous: Sequence[Verdict], differences: Sequence[float]
) -> Crossings:
    """Return where the verdicts change, in the order of `steps`. A step without a verdict is on neither side.

    `shown` are the verdicts at the level of the band that is shown, `simultaneous` those at the level of the
    simultaneous band.
    """
    sides = [
        (step, difference > 0)
        for step, verdict, difference in zip(steps, simultaneous, differences, strict=True)
        if verdict in APART and math.isfinite(difference)
    ]
    changes = [[step, later] for (step, side), (later, other) in pairwise(sides) if side != other]
    return Crossings(
        first_indistinguishable=_first(steps, [verdict == "indistinguishable" for verdict in shown]),
        indistinguishable_from=_from(steps, [verdict == "indistinguishable" for verdict in simultaneous]),
        first_apart=_first(steps, [verdict in APART for verdict in shown]),
        apart_from=_from(steps, [verdict in APART for verdict in simultaneous]),
        sign_changes=changes,
    )


def _first(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    return next((step for step, here in zip(steps, holds, strict=True) if here), None)


def _from(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    """Return the step from which on it holds to the last, at two steps or more."""
    found = None
    for step, here in zip(reversed(steps), reversed(holds), strict=True):
        if not here:
            break
        found = step
    return found if steps and found != steps[-1] else None
