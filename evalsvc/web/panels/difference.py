"""The difference between two runs along training, with where it enters and leaves the noise."""

from __future__ import annotations

import shlex
from typing import Annotated, ClassVar
from urllib.parse import urlencode

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import UnknownName
from evalsvc.spec.documents.comparisons import DifferenceCurve, RunComparison
from evalsvc.web.charts import difference_chart
from evalsvc.web.formats import number
from evalsvc.web.panel import Commands, MetricName, Panel, PanelQuery, Table

RunName = Annotated[str, Field(min_length=1, max_length=300)]


class DifferenceQuery(PanelQuery):
    """The difference b − a between two runs in one metric."""

    name: ClassVar = "difference"

    a: RunName
    """Run that the other one is compared with."""
    b: RunName
    """Run that is compared."""
    metric: MetricName
    """Name of the metric."""

    def panel(self, source: ServiceReader) -> Panel:
        return self.panel_of(source.compare_runs(self.a, self.b, [self.metric]))

    def panel_of(self, comparison: RunComparison) -> Panel:
        """Return the panel of a comparison that was read already."""
        curves = [curve for curve in comparison.curves if curve.metric == self.metric]
        if not curves and self.metric not in comparison.refused:
            raise UnknownName.among("metric", self.metric, [curve.metric for curve in comparison.curves])
        query = urlencode({"a": self.a, "b": self.b, "metric": self.metric})
        return Panel(
            query=self,
            title=f"{self.metric}: {self.b} − {self.a}",
            spec=difference_chart(curves[0]) if curves else None,
            table=_table(curves[0]) if curves else Table([], []),
            commands=Commands(
                cli=f"evalsvc compare {shlex.quote(self.a)} {shlex.quote(self.b)} --metric {shlex.quote(self.metric)}",
                rest=f"/v1/compare/curves?{query}",
            ),
            notes=_notes(curves[0]) if curves else [comparison.refused[self.metric]],
            protocols=[curve.protocol for curve in curves if curve.protocol],
        )


def _notes(curve: DifferenceCurve) -> list[str]:
    notes = []
    if curve.apart_from is not None:
        notes.append(f"from step {curve.apart_from:,} on, the difference is beyond the noise")
    if curve.indistinguishable_from is not None:
        size = f"differences up to {number(curve.largest_not_excluded)} are not excluded"
        notes.append(f"from step {curve.indistinguishable_from:,} on, the difference is within the noise; {size}")
    notes += [f"the sign changes between the steps {before:,} and {after:,}" for before, after in curve.sign_changes]
    return notes


def _table(curve: DifferenceCurve) -> Table:
    columns = ["step", "a", "b", "b − a", "± stderr", "low", "high", "verdict", "basis", "n"]
    rows = list(
        zip(
            curve.x,
            curve.a,
            curve.b,
            curve.difference,
            curve.stderr,
            curve.low,
            curve.high,
            curve.verdict,
            curve.basis,
            curve.n,
            strict=True,
        )
    )
    return Table(columns, rows)
