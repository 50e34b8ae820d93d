"""A metric of one or several runs along training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote, urlencode

from pydantic import Field

from evalsvc.checkpoints.expression_parser import is_expression
from evalsvc.client import Client
from evalsvc.spec.documents.history import Axis, Gap
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.charts import Scale, curve_chart
from evalsvc.web.curves import Curve, curves_of, gaps_of
from evalsvc.web.panel import Commands, MetricName, Panel, PanelQuery, RunNames, Table

POINTS = 500
"""Buckets of a series: about one per pixel that a chart has."""

Bound = Annotated[int, Field(ge=0, le=MAX_STEP)] | None


class CurveQuery(PanelQuery):
    """A metric of one or several runs along training."""

    name: ClassVar = "curve"

    run: RunNames
    """Runs, drawn over each other."""
    metric: MetricName
    """Name of the metric."""
    protocol: Annotated[str, Field(max_length=64)] | None = None
    """Id of the protocol; by default, the protocol of the first run's newest value."""
    variant: Annotated[str, Field(max_length=128)] | None = None
    """Variant of the weights; by default, every variant."""
    x: Axis = "step"
    """Axis: training steps or training tokens."""
    scale: Scale = "linear"
    """Scale of the values."""
    smooth: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    """Weight of the past in the moving average that is drawn over the points."""
    first: Annotated[Bound, Field(alias="from")] = None
    """First step or token."""
    last: Annotated[Bound, Field(alias="to")] = None
    """Last step or token."""
    points: Annotated[int, Field(ge=2, le=2000)] = POINTS
    """Most points of a curve; a longer history is drawn in buckets."""

    def panel(self, client: Client) -> Panel:
        """Return the chart of a metric, with a table of its values."""
        curves: list[Curve] = []
        gaps: list[Gap] = []
        for run in self.run:
            buckets = client.buckets(
                run,
                [self.metric],
                points=self.points,
                variant=self.variant,
                x=self.x,
                first=self.first,
                last=self.last,
            )
            checkpoints = client.run(run).checkpoints if self.x == "step" else []
            virtual = [(point.step, point.variant) for point in checkpoints if is_expression(point.uri)]
            found = [curve for curve in curves_of(buckets, self.smooth, virtual) if curve.metric == self.metric]
            curves += found
            gaps += gaps_of(buckets, found)
        protocol = self.protocol or _newest_protocol(curves)
        drawn = [curve for curve in curves if curve.protocol == protocol]
        return Panel(
            name=self.name,
            title=self.metric,
            query=self.to_query(),
            spec=curve_chart(drawn, gaps, axis=self.x, scale=self.scale) if any(c.points for c in drawn) else None,
            table=_table(drawn, gaps, self.x),
            commands=self._commands(),
            notes=list(_notes(curves, drawn, protocol, self.scale)),
            protocols=[protocol] if protocol else [],
        )

    def _commands(self) -> Commands:
        runs = " ".join(map(shlex.quote, self.run))
        query = urlencode({"metric": self.metric, "x": self.x})
        return Commands(
            cli=f"evalsvc history {runs} --metric {shlex.quote(self.metric)}",
            rest=f"/v1/runs/{quote(self.run[0], safe='')}/metrics?{query}",
        )


def _newest_protocol(curves: Sequence[Curve]) -> str | None:
    """Return the protocol of the first run's newest value."""
    measured = [curve for curve in curves if curve.points]
    own = [curve for curve in measured if curve.run == measured[0].run]
    return max(own, key=lambda curve: curve.points[-1].x).protocol if own else None


def _notes(curves: Sequence[Curve], drawn: Sequence[Curve], protocol: str | None, scale: Scale) -> Iterator[str]:
    """Yield what the chart leaves out."""
    others = {curve.protocol: curve for curve in curves if curve.protocol != protocol and curve.points}
    for other in others.values():
        words = other.differs or "see its page"
        yield (
            f"{other.label} was also measured by protocol {other.protocol} ({words}), whose values are not "
            "comparable with these"
        )
    if scale == "log":
        hidden = sum(isinstance(p.value, float) and p.value <= 0 for curve in drawn for p in curve.points)
        if hidden:
            yield f"{hidden} values up to zero have no place on a logarithmic scale"
    if any(point.count > 1 for curve in drawn for point in curve.points):
        yield "each point is the last value of several; the light band is the range of the others"


def _table(curves: Sequence[Curve], gaps: Sequence[Gap], axis: Literal["step", "tokens"]) -> Table:
    columns = ["run", axis, "value", "± stderr", "low", "high", "n", "values", "kind"]
    rows = [
        [
            curve.label,
            point.x,
            point.value,
            point.stderr,
            point.low,
            point.high,
            point.n,
            point.count,
            "imported" if point.imported else "virtual" if point.virtual else "measured",
        ]
        for curve in curves
        for point in curve.points
    ]
    rows += [["", gap.step, None, None, None, None, None, None, f"{gap.why}: {gap.message}"] for gap in gaps]
    return Table(columns, rows)
