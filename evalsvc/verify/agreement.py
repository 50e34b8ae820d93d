"""What a verification finds: one quantity computed by evalsvc and by another program, and whether the two agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Agreement:
    """A quantity that was computed twice."""

    quantity: str
    """What was computed, e.g. `fid64 of 256 PNG files`."""
    program: str
    """What computed it the second time, with its version: `torch-fidelity 0.4.0`, or `golden values`."""
    difference: float
    """Largest absolute difference; NaN where a side holds NaN."""
    tolerance: float
    """Largest absolute difference that rounding explains."""
    ours: float | None = None
    """The number by evalsvc; None where whole arrays were compared."""
    theirs: float | None = None
    note: str = ""
    """What a reader must know to read the difference, such as how the tolerance follows."""

    @classmethod
    def of_numbers(
        cls, quantity: str, program: str, ours: float, theirs: float, tolerance: float, note: str = ""
    ) -> Agreement:
        """Compare two numbers."""
        return cls(quantity, program, abs(ours - theirs), tolerance, ours, theirs, note)

    @classmethod
    def of_arrays(
        cls, quantity: str, program: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float, note: str = ""
    ) -> Agreement:
        """Compare two arrays element by element; arrays of different shapes differ by infinity."""
        import numpy as np  # not above: the command line starts without

        first, second = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if first.shape != second.shape:
            found = f"shapes {list(first.shape)} and {list(second.shape)}"
            return cls(quantity, program, math.inf, tolerance, note=f"{note}; {found}" if note else found)
        return cls(quantity, program, float(np.abs(first - second).max(initial=0.0)), tolerance, note=note)

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance; a NaN is not."""
        return self.difference <= self.tolerance

    @property
    def verdict(self) -> str:
        return "ok" if self.agrees else "WRONG"


@dataclass(frozen=True)
class Untried:
    """A quantity that could not be computed a second time here."""

    quantity: str
    program: str
    reason: str
    """Why, and what to do: a package that is not installed, and the command that installs it."""

    verdict = "not tried"


Finding = Agreement | Untried


def installed(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def release(package: str) -> str:
    """Return the name of a package with its version where it is installed, as findings name a program."""
    return " ".join(filter(None, (package, installed(package))))


def all_agree(findings: Sequence[Finding]) -> bool:
    """Whether something was computed twice, and everything that was agrees."""
    tried = [finding for finding in findings if isinstance(finding, Agreement)]
    return bool(tried) and all(finding.agrees for finding in tried)


COLUMNS = ("quantity", "program", "ours", "theirs", "difference", "tolerance", "", "note")
"""Columns of the table that a terminal shows."""

DROP = ("theirs", "ours")
"""Columns that go, in this order, where a terminal is too narrow for all."""


def table_row(finding: Finding) -> list[str]:
    """The cells of a finding under COLUMNS."""
    if isinstance(finding, Untried):
        return [finding.quantity, finding.program, "", "", "", "", finding.verdict, finding.reason]
    numbers = ["" if number is None else f"{number:.9g}" for number in (finding.ours, finding.theirs)]
    limits = [f"{finding.difference:.2g}", f"{finding.tolerance:.2g}"]
    return [finding.quantity, finding.program, *numbers, *limits, finding.verdict, finding.note]


def to_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Return JSON: `agrees`, and `findings` with a `verdict` each. A number that is not finite is None."""
    return {"agrees": all_agree(findings), "findings": [_finding_json(finding) for finding in findings]}


def _finding_json(finding: Finding) -> dict[str, object]:
    fields = {"verdict": finding.verdict, **vars(finding)}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
