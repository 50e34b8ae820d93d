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
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from evalsvc.compare.contrast import Contrast, Options, contrast_all, judged_at, require_known
from evalsvc.compare.result import Result, task_of
from evalsvc.errors import NotComparable
from evalsvc.spec.protocol import describe_differences, number_to_json, plain_json, tell_apart

Band = Literal["pointwise", "simultaneous"]

APART = ("better", "worse", "different")
"""Verdicts of a difference that has left the noise."""

SIMULTANEOUS_CROSSINGS = ("indistinguishable_from", "apart_from", "sign_changes")
"""The crossings that are about several steps, and rest on the simultaneous band."""


@dataclass(frozen=True)
class Crossings:
    """Steps at which a difference enters or leaves the noise; None where it never does."""

    first_indistinguishable: int | None
    """The first step at which the difference is indistinguishable from zero, in the band that is shown."""
    indistinguishable_from: int | None
    """The step from which on the difference always is, in the simultaneous band; None where that is the last step
    alone, of which "always" says nothing."""
    first_apart: int | None
    """The first step at which the difference is beyond the noise, in the band that is shown."""
    apart_from: int | None
    """The step from which on the difference always is, in the simultaneous band; None where that is the last step."""
    sign_changes: tuple[tuple[int, int], ...]
    """Each (last step beyond noise on one side of zero, first on the other), in the simultaneous band: in between the
    difference was zero, whether or not there was a step to see it."""


@dataclass(frozen=True)
class DifferenceCurve:
    """One metric under one protocol, b − a along the steps that both have."""

    steps: tuple[int, ...]
    contrasts: tuple[Contrast, ...]
    """One a step, with the interval of the band."""
    step_level: float
    """Of the interval at each step."""
    simultaneous_level: float
    """Of an interval at each step of the simultaneous band, on which `SIMULTANEOUS_CROSSINGS` rest."""
    crossings: Crossings

    @property
    def place(self) -> tuple[str, str]:
        """The metric and the id of its protocol, or those of both sides where they differ."""
        first = self.contrasts[0]
        if first.differing and first.b is not None:
            return first.metric, f"{first.protocol} → {first.b.protocol}"
        return first.metric, first.protocol

    def to_json(self, differs: Mapping[str, Any]) -> dict[str, Any]:
        """Columns along the steps; NaN and infinities are strings. `differs` tells the curve from others of the
        metric."""
        first, rows = self.contrasts[0], self.contrasts
        sides = {
            name: [side and number_to_json(getattr(side, field)) for side in side_of]
            for letter, side_of in (("a", [row.a for row in rows]), ("b", [row.b for row in rows]))
            for name, field in ((letter, "value"), (f"{letter}_stderr", "stderr"))
        }
        return {
            "metric": first.metric,
            "task": first.task,
            "unit": first.unit,
            "direction": first.direction,
            "protocol": None if first.differing or first.a is None else first.a.protocol,
            "differs": plain_json(differs),
            "step_level": self.step_level,
            "simultaneous_level": self.simultaneous_level,
            "x": list(self.steps),
            **sides,
            "difference": [number_to_json(row.difference) for row in rows],
            "stderr": [number_to_json(row.stderr) for row in rows],
            "low": [row.interval and number_to_json(row.interval.low) for row in rows],
            "high": [row.interval and number_to_json(row.interval.high) for row in rows],
            "verdict": [row.verdict for row in rows],
            "basis": [row.basis for row in rows],
            "n": [row.n for row in rows],
            "groups": [row.groups for row in rows],
            "n_only_a": [row.n_only_a for row in rows],
            "n_only_b": [row.n_only_b for row in rows],
            **asdict(self.crossings),
        }


def difference_curves(
    a: str, b: str, pairs: Iterable[tuple[int, Result, Result]], options: Options, band: Band = "pointwise"
) -> dict[str, Any]:
    """The curves of b − a over (step, result of a, result of b), by step: `{"a", "b", "x", "level", "band",
    "crossings_rest_on", "forced", "curves", "refused"}`.

    `a` and `b` say what is compared. `crossings_rest_on` has the band of each field of `Crossings`. A metric of which
    the protocols differ at some step has no curve there: `refused` has the reason by metric. A step where a side lacks
    a metric is left out of its curve.

    Raises:
        UnknownName: at no step is there a metric or task of a name that is asked for.
        InvalidRequest: the level is not between 0 and 1.
        NotComparable: of nothing that is asked for are the protocols alike, and nothing was forced.
    """
    found: dict[tuple[str, ...], list[tuple[int, Contrast]]] = {}
    refused: dict[str, str] = {}
    seen: dict[tuple[str, str], Result] = {}
    contents: dict[str, Mapping[str, Any]] = {}
    for step, before, after in pairs:
        # Of a result is kept what its metrics are called; the values and the results per item go with it.
        for metric in (*before.document["metrics"], *after.document["metrics"]):
            if (key := (metric["name"], task_of(metric))) not in seen:
                seen[key] = Result("", {"metrics": [metric]})
        contents |= {**before.protocols, **after.protocols}
        for contrast in contrast_all(before, after, options):
            if contrast.verdict == "other_protocol":
                refused.setdefault(contrast.metric, f"at step {step} {describe_differences(contrast.differing)}")
            elif contrast.a is not None and contrast.b is not None:
                protocols = (contrast.metric, contrast.a.protocol, contrast.b.protocol)
                found.setdefault(protocols, []).append((step, contrast))
    require_known(seen.values(), options, f"{a} or {b}")
    if refused and not found:
        reasons = "; ".join(f"{metric}: {reason}" for metric, reason in refused.items())
        raise NotComparable(
            f"{a} and {b} were measured by different protocols: {reasons}; evaluate one of the two again, or compare "
            "them all the same: --force (force=true)"
        )
    curves = [_curve(rows, options.level, band) for rows in found.values()]
    differs = tell_apart([curve.place for curve in curves], contents)
    return {
        "a": a,
        "b": b,
        "x": "step",
        "level": options.level,
        "band": band,
        "crossings_rest_on": {
            name: "simultaneous" if name in SIMULTANEOUS_CROSSINGS else band for name in Crossings.__dataclass_fields__
        },
        "forced": options.force,
        "curves": [curve.to_json(differs[curve.place]) for curve in curves],
        "refused": refused,
    }


def _curve(rows: Sequence[tuple[int, Contrast]], level: float, band: Band) -> DifferenceCurve:
    looks = sum(contrast.p is not None for _, contrast in rows)
    steps, pointwise = tuple(step for step, _ in rows), tuple(contrast for _, contrast in rows)
    simultaneous_level = level_of_looks(level, looks)
    simultaneous = tuple(judged_at(contrast, simultaneous_level) for contrast in pointwise)
    shown, step_level = (simultaneous, simultaneous_level) if band == "simultaneous" else (pointwise, level)
    return DifferenceCurve(steps, shown, step_level, simultaneous_level, crossings(steps, shown, simultaneous))


def level_of_looks(level: float, looks: int) -> float:
    """Return the level of each of so many intervals that hold all together with at least `level`, by Bonferroni."""
    return 1 - (1 - level) / max(looks, 1)


def crossings(steps: Sequence[int], shown: Sequence[Contrast], simultaneous: Sequence[Contrast]) -> Crossings:
    """Return where the verdicts change, in the order of `steps`. A step without a verdict is on neither side.

    `shown` are the contrasts judged at the level of the band that is shown, `simultaneous` the same ones at that of the
    simultaneous band.
    """
    sides = [
        (step, contrast.difference > 0)
        for step, contrast in zip(steps, simultaneous, strict=True)
        if contrast.verdict in APART and contrast.difference is not None and math.isfinite(contrast.difference)
    ]
    changes = tuple((step, later) for (step, side), (later, other) in pairwise(sides) if side != other)
    return Crossings(
        _first(steps, [_is_within(contrast) for contrast in shown]),
        _from(steps, [_is_within(contrast) for contrast in simultaneous]),
        _first(steps, [contrast.verdict in APART for contrast in shown]),
        _from(steps, [contrast.verdict in APART for contrast in simultaneous]),
        changes,
    )


def _is_within(contrast: Contrast) -> bool:
    return contrast.verdict == "indistinguishable"


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
