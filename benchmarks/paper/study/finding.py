"""A finding of the paper: the runs that it needs, its figures, and its row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evalsvc.files.atomic import write_whole
from evalsvc.web import vega
from evalsvc.web.charts import Spec
from study.material import Material
from study.measured import Measured
from study.runs import PlannedRun
from study.scales import Scale

Agrees = Literal["yes", "no", "in part", "not measured"]

KINDS: tuple[Literal["svg", "png"], ...] = ("svg", "png")


@dataclass(frozen=True)
class Figure:
    """A chart of the dashboard as a file."""

    name: str
    title: str
    spec: Spec

    def write(self, folder: Path) -> None:
        """Write the figure as SVG and as PNG."""
        for kind in KINDS:
            content = vega.render(self.spec | {"title": self.title}, kind)
            write_whole(folder / f"{self.name}.{kind}", content, mode=0o644)


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    paper: str
    here: str
    agrees: Agrees
    limits: str
    """What this scale can show and what it cannot."""


@dataclass(frozen=True)
class Report:
    """What a finding came to."""

    row: Row
    figures: Sequence[Figure]
    tables: Sequence[str] = ()
    """Markdown tables and sentences below the figures."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers for programs, such as the independent check."""

    def to_json(self) -> dict[str, Any]:
        figures = [{"name": figure.name, "title": figure.title} for figure in self.figures]
        return {
            "row": vars(self.row),
            "figures": figures,
            "tables": list(self.tables),
            "numbers": dict(self.numbers),
        }


@dataclass(frozen=True)
class Finding:
    """One figure, table or claim of the paper."""

    name: str
    title: str
    runs: Callable[[Scale, Material], list[PlannedRun]]
    """Function that returns the runs whose history the finding reads."""
    report: Callable[[Measured, Scale, Material], Report]
    scales: frozenset[str] = frozenset({"quick", "miniature"})
    """Names of the scales at which the finding is computed."""
