"""The differences between two checkpoints, metric by metric."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, ClassVar
from urllib.parse import urlencode

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.metrics.intervals import LEVEL
from evalsvc.metrics.shown_metrics import Place, divide_rows
from evalsvc.spec.documents.comparisons import Comparison, Family, MetricDifference
from evalsvc.web.charts import contrast_chart
from evalsvc.web.panel import Commands, Panel, PanelQuery, Table

CheckpointName = Annotated[str, Field(min_length=1, max_length=500)]


class ContrastsQuery(PanelQuery):
    """The differences b − a between two checkpoints."""

    name: ClassVar = "contrasts"

    a: CheckpointName
    """Checkpoint that the other one is compared with, as RUN@STEP or RUN@STEP:VARIANT."""
    b: CheckpointName
    """Checkpoint that is compared."""
    level: Annotated[float, Field(gt=0, lt=1)] = LEVEL
    """Level of the verdicts."""
    family: Family = "none"
    """Verdicts on each metric alone, or on all metrics together by Holm's method."""

    def panel(self, source: ServiceReader) -> Panel:
        return self.panel_of(source.compare(self.a, self.b, level=self.level, family=self.family))

    def panel_of(self, comparison: Comparison) -> Panel:
        """Return the panel of a comparison that was read already."""
        given = self.model_dump(include={"level", "family"}, exclude_defaults=True)
        rows, _ = divided(comparison.contrasts)
        return Panel(
            query=self,
            title=f"{self.b} against {self.a}",
            spec=contrast_chart(rows) if rows else None,
            table=_table(comparison),
            commands=Commands(
                cli=f"evalsvc compare {shlex.quote(self.a)} {shlex.quote(self.b)}"
                + "".join(f" --{name} {value}" for name, value in given.items()),
                rest="/v1/compare?" + urlencode({"a": self.a, "b": self.b, **given}),
            ),
            notes=_notes(comparison),
        )


def divided(rows: Sequence[MetricDifference]) -> tuple[list[MetricDifference], list[MetricDifference]]:
    """Return the differences with a verdict of their own, and those of companions, such as perplexities of a loss."""
    places = [Place(row.metric, "", side.protocol if (side := row.a or row.b) else "") for row in rows]
    own = set(divide_rows(places).shown)
    return [row for at, row in enumerate(rows) if at in own], [row for at, row in enumerate(rows) if at not in own]


def _notes(comparison: Comparison) -> list[str]:
    notes = [f"verdicts are at the level {comparison.level:g}"]
    if comparison.expected_by_chance:
        notes.append(
            f"of {comparison.judged} metrics, {comparison.expected_by_chance:.2g} differ by chance alone on average"
        )
    return notes


def _table(comparison: Comparison) -> Table:
    columns = ["metric", "a", "b", "b − a", "± stderr", "unit", "verdict", "basis", "n", "differing"]
    rows = [
        [
            row.metric,
            None if row.a is None else row.a.value,
            None if row.b is None else row.b.value,
            row.difference,
            row.stderr,
            row.unit,
            row.verdict.replace("_", " "),
            row.basis,
            row.n,
            "; ".join(f"{key}: {sides.get('a', '–')} / {sides.get('b', '–')}" for key, sides in row.differing.items()),
        ]
        for row in comparison.contrasts
    ]
    return Table(columns, rows)
