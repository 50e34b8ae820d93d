"""A finding of the paper: the runs that it needs, its figures, and its row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from evalsvc.files.atomic import write_whole
from evalsvc.web import vega
from evalsvc.web.charts import Spec
from study.claims import Claim
from study.material import Material
from study.measured import Measured
from study.runs import PlannedRun
from study.scales import Scale

KINDS: tuple[Literal["svg", "png"], ...] = ("svg", "png")


@dataclass(frozen=True)
class Figure:
    """A chart of the dashboard, or a picture, as a file."""

    name: str
    title: str
    spec: Spec | None = None
    picture: Callable[[], bytes] | None = None
    """Function that returns a PNG file, instead of a chart."""

    @property
    def file(self) -> str:
        """Name of the file that a page shows."""
        return f"{self.name}.svg" if self.picture is None else f"{self.name}.png"

    def write(self, folder: Path) -> None:
        """Write the figure as SVG and as PNG; a picture as PNG."""
        for kind in KINDS if self.spec is not None else ():
            content = vega.render({**(self.spec or {}), "title": self.title}, kind)
            write_whole(folder / f"{self.name}.{kind}", content, mode=0o644)
        if self.picture is not None:
            write_whole(folder / self.file, self.picture(), mode=0o644)


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    paper: str
    here: str
    limits: str
    """What this scale can show and what it cannot."""


@dataclass(frozen=True)
class Report:
    """What a finding came to."""

    row: Row
    figures: Sequence[Figure]
    claims: Sequence[Claim] = ()
    """What the paper says of numbers that were measured; none where it is not judged."""
    tables: Sequence[str] = ()
    """Markdown tables and sentences below the figures."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers for programs, such as the independent check."""
    against: str = ""
    """Sentence of what speaks against the paper, whatever the verdict is; for the first lines of the page."""

    def to_json(self) -> dict[str, Any]:
        return {
            "row": vars(self.row),
            "figures": [{"file": figure.file, "title": figure.title} for figure in self.figures],
            "claims": [
                {**asdict(claim), "values": list(claim.values), "errors": list(claim.errors)} for claim in self.claims
            ],
            "tables": list(self.tables),
            "numbers": dict(self.numbers),
            "against": self.against,
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
