"""How far two runs are apart, step by step, and at which step their difference leaves the noise or re-enters it.

At each step the two checkpoints are compared as `compare` does it, paired over their items. What is asked of the curve
is where the interval of the difference covers zero: the text-loss gap of two runs closes at the first such step, and
for good at the step from which on every interval does. An interval that covers zero does not say that there is no
difference, only that none was found with so many items; and the noise is that of the items, not of another training.

Every step is a look, and of many looks some are off by chance. A *pointwise* interval holds the truth at its own step
with the probability `level`; a *simultaneous* band holds it at all steps at once with at least that: each of its k
intervals has the level 1 − (1 − level) / k, by Bonferroni, however the steps depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from evalsvc.compare import Contrast, Options, contrast_all, judged_at, require_known
from evalsvc.errors import NotComparable
from evalsvc.protocol import describe_differences, number_to_json, plain_json, tell_apart
from evalsvc.result import Result, task_of

Band = Literal["pointwise", "simultaneous"]

APART = ("better", "worse", "different")
"""Verdicts of a difference that has left the noise."""


@dataclass(frozen=True)
class Crossings:
    """Steps at which a difference enters or leaves the noise; None where it never does."""

    first_indistinguishable: int | None
    """The first step at which the interval covers zero."""
    indistinguishable_from: int | None
    """From this step on it always does."""
    first_apart: int | None
    """The first step at which it does not."""
    apart_from: int | None
    """From this step on it never does."""
    sign_changes: tuple[tuple[int, int], ...]
    """Each (last step beyond noise on one side of zero, first on the other): in between the difference was zero,
    whether or not there was a step to see it."""


@dataclass(frozen=True)
class DifferenceCurve:
    """One metric under one protocol, b − a along the steps that both have."""

    steps: tuple[int, ...]
    contrasts: tuple[Contrast, ...]
    """One a step, with the interval of the band."""
    step_level: float
    """Of the interval at each step."""
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
            "x": list(self.steps),
            **sides,
            "difference": [number_to_json(row.difference) for row in rows],
            "stderr": [number_to_json(row.stderr) for row in rows],
            "low": [row.interval and number_to_json(row.interval.low) for row in rows],
            "high": [row.interval and number_to_json(row.interval.high) for row in rows],
            "verdict": [row.verdict for row in rows],
            "basis": [row.basis for row in rows],
            "n": [row.n for row in rows],
            **asdict(self.crossings),
        }


def difference_curves(
    a: str, b: str, pairs: Iterable[tuple[int, Result, Result]], options: Options, band: Band = "pointwise"
) -> dict[str, Any]:
    """The curves of b − a over (step, result of a, result of b), by step: `{"a", "b", "x", "level", "band", "forced",
    "curves", "refused"}`.

    `a` and `b` say what is compared. A metric of which the protocols differ at some step has no curve there: `refused`
    has the reason by metric. A step where a side lacks a metric is left out of its curve.

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
        "forced": options.force,
        "curves": [curve.to_json(differs[curve.place]) for curve in curves],
        "refused": refused,
    }


def _curve(rows: Sequence[tuple[int, Contrast]], level: float, band: Band) -> DifferenceCurve:
    looks = sum(contrast.interval is not None for _, contrast in rows)
    step_level = band_level(level, band, looks)
    judged = step_level == level  # each contrast was, when it was made
    contrasts = tuple(contrast if judged else judged_at(contrast, step_level) for _, contrast in rows)
    steps = tuple(step for step, _ in rows)
    return DifferenceCurve(steps, contrasts, step_level, crossings(steps, contrasts))


def band_level(level: float, band: Band, looks: int) -> float:
    """The level of each of so many intervals."""
    return 1 - (1 - level) / max(looks, 1) if band == "simultaneous" else level


def crossings(steps: Sequence[int], contrasts: Sequence[Contrast]) -> Crossings:
    """Where the verdicts change, in the order of `steps`. A step of which no error is known is on neither side."""
    within = [contrast.verdict == "indistinguishable" for contrast in contrasts]
    apart = [contrast.verdict in APART for contrast in contrasts]
    sides = [
        (step, contrast.interval.low > 0)
        for step, contrast, here in zip(steps, contrasts, apart, strict=True)
        if here and contrast.interval is not None
    ]
    changes = tuple((step, later) for (step, side), (later, other) in pairwise(sides) if side != other)
    return Crossings(_first(steps, within), _from(steps, within), _first(steps, apart), _from(steps, apart), changes)


def _first(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    return next((step for step, here in zip(steps, holds, strict=True) if here), None)


def _from(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    """The step from which on it holds to the last."""
    found = None
    for step, here in zip(reversed(steps), reversed(holds), strict=True):
        if not here:
            break
        found = step
    return found
