"""Findings of a verification: a quantity computed by evalsvc and by another program, and whether both agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Agreement:
    """A quantity that was computed by two programs."""

    quantity: str
    program: str
    """Name and version of the second program: `torch-fidelity 0.4.0`, or `golden values`."""
    difference: float
    """Largest absolute difference; NaN if a side holds NaN."""
    tolerance: float
    """Largest absolute difference that rounding explains."""
    ours: float | None = None
    """Number by evalsvc; None if whole arrays were compared."""
    theirs: float | None = None
    note: str = ""
    """Explanation of the difference for readers, such as the origin of the tolerance."""

    @classmethod
    def of_numbers(
        cls, quantity: str, program: str, ours: float, theirs: float, tolerance: float, note: str = ""
    ) -> Agreement:
        return cls(quantity, program, abs(ours - theirs), tolerance, ours, theirs, note)

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance

    @property
    def verdict(self) -> str:
        return "ok" if self.agrees else "WRONG"


@dataclass(frozen=True)
class Untried:
    quantity: str
    program: str
    reason: str
    """Reason and remedy, such as the command that installs a missing package."""

    verdict = "not tried"


Finding = Agreement | Untried


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def all_agree(findings: Sequence[Finding]) -> bool:
    """Return whether anything was compared, and every comparison agrees."""
    tried = [finding for finding in findings if isinstance(finding, Agreement)]
    return bool(tried) and all(finding.agrees for finding in tried)


COLUMNS, DROP = ("quantity", "program", "ours", "theirs", "difference", "tolerance", "", "note"), ("theirs", "ours")
"""Columns of the table, and those that go, in this order, where a terminal is too narrow."""


def table_row(finding: Finding) -> list[str]:
    if isinstance(finding, Untried):
        return [finding.quantity, finding.program, "", "", "", "", finding.verdict, finding.reason]
    numbers = ["" if number is None else f"{number:.9g}" for number in (finding.ours, finding.theirs)]
    limits = [f"{finding.difference:.2g}", f"{finding.tolerance:.2g}"]
    return [finding.quantity, finding.program, *numbers, *limits, finding.verdict, finding.note]


def to_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Return JSON: `agrees`, and `findings` with a `verdict` each. Numbers that are not finite are None."""
    rows = [{"verdict": finding.verdict, **vars(finding)} for finding in findings]
    for row in rows:
        row |= {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return {"agrees": all_agree(findings), "findings": rows}
