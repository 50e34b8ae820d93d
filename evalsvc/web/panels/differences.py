"""Differences: between two checkpoints, metric by metric, and between two runs along training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlencode

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import UnknownName
from evalsvc.metrics.definitions import title_of
from evalsvc.metrics.intervals import LEVEL, percent
from evalsvc.metrics.shown_metrics import Place, divide_rows
from evalsvc.spec.documents.comparisons import Comparison, DifferenceCurve, Family, MetricDifference, RunComparison
from evalsvc.web.charts import Along, contrast_chart, difference_chart
from evalsvc.web.formats import number
from evalsvc.web.panel import Commands, MetricName, Panel, PanelQuery, Table

Side = Annotated[str, Field(min_length=1, max_length=500)]
Across = tuple[Literal["sampling"], ...]


class _OfTwo(PanelQuery):
    a: Side
    """Run or checkpoint that the other one is compared with, as RUN, RUN@STEP or RUN@STEP:VARIANT."""
    b: Side
    across: Across = ()
    """`sampling`: external images are compared with sampled ones."""

    def command(self, *options: str) -> str:
        both = f"evalsvc compare {shlex.quote(self.a)} {shlex.quote(self.b)}"
        return " ".join([both, *options, *(["--across-sampling"] if self.across else [])])


class ContrastsQuery(_OfTwo):
    """The differences b − a between two checkpoints."""

    name: ClassVar = "contrasts"

    level: Annotated[float, Field(gt=0, lt=1)] = LEVEL
    family: Family = "none"
    """Verdicts on each metric alone, or on all metrics together by Holm's method."""

    def panel(self, source: ServiceReader) -> Panel:
        compared = source.compare(self.a, self.b, level=self.level, family=self.family, across=self.across)
        return self.panel_of(compared)

    def panel_of(self, comparison: Comparison) -> Panel:
        given = self.model_dump(include={"level", "family"}, exclude_defaults=True)
        rows = [row for row, _ in divided(comparison.contrasts)]
        notes = [f"verdicts are at the level {percent(comparison.level)}"]
        if expected := comparison.expected_by_chance:
            notes.append(f"of {comparison.judged} metrics, {expected:.2g} differ by chance alone on average")
        return Panel(
            query=self,
            title=f"{self.b} against {self.a}",
            parts=[self.b, "against", self.a],
            spec=contrast_chart(rows) if rows else None,
            table=_contrasts(comparison),
            commands=Commands(
                cli=self.command(*(f"--{name} {value}" for name, value in given.items())),
                rest="/v1/compare?" + urlencode({"a": self.a, "b": self.b, **given, "across": self.across}, doseq=True),
            ),
            notes=notes,
        )


def divided(rows: Sequence[MetricDifference]) -> list[tuple[MetricDifference, list[MetricDifference]]]:
    """Return the differences with a verdict of their own, each with its companions, such as a loss's perplexity."""
    parts = divide_rows([Place(row.metric, "", side.protocol if (side := row.a or row.b) else "") for row in rows])
    return [(rows[at], [rows[each] for each in parts.companions.get(at, ())]) for at in parts.shown]


def _contrasts(comparison: Comparison) -> Table:
    columns = ["metric", "a", "b", "b − a", "± stderr", "unit", "verdict", "basis", "n", "differing"]
    rows = []
    for row in comparison.contrasts:
        sides = [None if side is None else side.value for side in (row.a, row.b)]
        differing = [f"{key}: {each.get('a', '–')} / {each.get('b', '–')}" for key, each in row.differing.items()]
        words = [row.unit, row.verdict.replace("_", " "), row.basis]
        rows.append([row.metric, *sides, row.difference, row.stderr, *words, row.n, "; ".join(differing)])
    return Table(columns, rows)


class DifferenceQuery(_OfTwo):
    """The difference b − a between two runs in one metric."""

    name: ClassVar = "difference"

    metric: MetricName
    along: Along = "auto"

    def panel(self, source: ServiceReader) -> Panel:
        return self.panel_of(source.compare_runs(self.a, self.b, [self.metric], across=self.across))

    def panel_of(self, comparison: RunComparison) -> Panel:
        curves = [curve for curve in comparison.curves if curve.metric == self.metric]
        if not curves and self.metric not in comparison.refused:
            raise UnknownName.among("metric", self.metric, [curve.metric for curve in comparison.curves])
        query = urlencode({"a": self.a, "b": self.b, "metric": self.metric, "across": self.across}, doseq=True)
        names = ["x", "a", "b", "difference", "stderr", "low", "high", "verdict", "basis", "n"]
        columns = ["step", "a", "b", "b − a", "± stderr", *names[5:]]
        rows = list(zip(*(getattr(curves[0], name) for name in names), strict=True)) if curves else []
        return Panel(
            query=self,
            title=f"{self.metric}: {self.b} − {self.a}",
            words=title_of(self.metric) or "",
            parts=[self.b, "minus", self.a, self.metric],
            spec=difference_chart(curves[0], self.along) if curves else None,
            table=Table(columns if curves else [], rows),
            commands=Commands(
                cli=self.command(f"--metric {shlex.quote(self.metric)}"), rest=f"/v1/compare/curves?{query}"
            ),
            notes=_notes(curves[0]) if curves else [comparison.refused[self.metric]],
            protocols=[curve.protocol for curve in curves if curve.protocol],
        )


def _notes(curve: DifferenceCurve) -> list[str]:
    notes = []
    if curve.apart_from is not None:
        notes.append(f"from step {curve.apart_from:,} on, the difference is beyond noise")
    if curve.indistinguishable_from is not None:
        size = f"differences up to {number(curve.largest_not_excluded)} are not excluded"
        notes.append(f"from step {curve.indistinguishable_from:,} on, the difference is within noise; {size}")
    notes += [f"the sign changes between the steps {before:,} and {after:,}" for before, after in curve.sign_changes]
    return notes
