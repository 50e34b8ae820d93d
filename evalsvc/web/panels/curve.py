"""A metric of one or several runs along training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote, urlencode

from pydantic import Field

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.history import Axis, Buckets
from evalsvc.spec.names import MAX_STEP, parse_checkpoint
from evalsvc.web.charts import Scale, curve_chart
from evalsvc.web.curves import Curve, Line, Missing, companions_of, curves_of, lines_of, missing_of, with_companions
from evalsvc.web.panel import Commands, MetricName, Panel, PanelQuery, RunNames, Table

EXACT = 500
"""Most values of a curve that are all drawn; a curve of more values is drawn in buckets."""

BUCKETS = 250
"""Most buckets of a curve: about one per pixel that a chart of a page has."""

BUCKETS_OF_ALL = 500
"""Most buckets of all runs in a chart: what a page takes to make and to draw grows with their number."""

MOST_BUCKETS = 10_000
"""Most buckets that the service makes of a series."""

Bound = Annotated[int, Field(ge=0, le=MAX_STEP)] | None

Weight = Annotated[float, Field(ge=0, le=0.99)]


@dataclass
class _Drawn:
    """What the chart of a metric has."""

    runs: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences about what the chart leaves out."""


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
    base: Annotated[str, Field(max_length=500)] | None = None
    """Checkpoint whose value is drawn as a line, as RUN@STEP or RUN@STEP:VARIANT."""
    x: Axis = "step"
    """Axis: training steps or training tokens."""
    scale: Scale = "linear"
    """Scale of the values."""
    along: Scale = "linear"
    """Scale of the axis."""
    smooth: Weight = 0.0
    """Weight of neighbours in the smoothed curve, which averages over about (1 + smooth) / (1 − smooth) values."""
    first: Annotated[Bound, Field(alias="from")] = None
    """First step or token."""
    last: Annotated[Bound, Field(alias="to")] = None
    """Last step or token."""
    points: Annotated[int | None, Field(ge=2, le=2000)] = None
    """Most points of a curve; a longer history is drawn in buckets. None: all of 500 values, but 250 buckets of more,
    and fewer buckets for each of several runs."""

    def panel(self, client: Client) -> Panel:
        """Return the chart of a metric, with a table of its values.

        Runs after the first that lack the metric are left out, with a note.
        """
        drawn = self._read(client)
        protocol = self.protocol or _newest_protocol(drawn.curves)
        curves = [curve for curve in drawn.curves if curve.protocol == protocol]
        has_points = any(curve.points for curve in curves)
        spec = curve_chart(
            curves, drawn.missing, drawn.lines, axis=self.x, scale=self.scale, along=self.along, smooth=self.smooth > 0
        )
        return Panel(
            name=self.name,
            title=self.metric,
            query=self.to_query(),
            spec=spec if has_points or drawn.missing else None,
            table=_table(curves, drawn.missing, self.x),
            commands=self._commands(),
            notes=[*drawn.notes, *_notes(drawn.curves, curves, protocol, self.scale)],
            protocols=[protocol] if protocol else [],
            origin=_origin(curves),
            watched=[watched(run) for run in drawn.runs],
        )

    def _read(self, client: Client) -> _Drawn:
        """Return the curves of all runs, of every protocol, and what is drawn around them."""
        drawn = _Drawn()
        for run in self.run:
            try:
                buckets = self._buckets(client, run, [self.metric])
            except (UnknownName, InvalidRequest) as error:
                if run == self.run[0]:
                    raise
                drawn.notes.append(f"{run} is not drawn: {error.message}")
                continue
            drawn.runs.append(run)
            curves = [curve for curve in curves_of(buckets, self.smooth) if curve.metric == self.metric]
            companions = self._companions(client, run, buckets)
            drawn.curves += [with_companions(curve, companions) for curve in curves]
            drawn.lines += [line for curve in curves if curve.points for line in lines_of(curve, companions)]
            drawn.missing += missing_of(buckets, curves)
            if buckets.more_gaps:
                drawn.notes.append(f"{run} has more gaps, at lower steps")
            drawn.notes += _omitted(buckets)
        if self.base is not None:
            self._add_base(client, drawn, self.base)
        return drawn

    def _buckets(self, client: Client, run: str, metrics: Sequence[str]) -> Buckets:
        """Return series in buckets; in narrower ones where values are few and merely close to one another."""
        read = partial(client.buckets, run, metrics, variant=self.variant, x=self.x, first=self.first, last=self.last)
        buckets = read(points=self.points or min(BUCKETS, BUCKETS_OF_ALL // len(self.run)))
        counts = [sum(series.count) for series in buckets.series]
        is_merged = any(count > len(series.x) for count, series in zip(counts, buckets.series, strict=True))
        return read(points=MOST_BUCKETS) if is_merged and max(counts) <= (self.points or EXACT) else buckets

    def _companions(self, client: Client, run: str, buckets: Buckets) -> list[Curve]:
        """Return the metrics that are read next to the metric, at the places of its points."""
        names = companions_of(self.metric, buckets.names)
        if not names:
            return []
        both = self._buckets(client, run, [self.metric, *names])  # so both have the same ranges
        return [curve for curve in curves_of(both) if curve.metric != self.metric]

    def _add_base(self, client: Client, drawn: _Drawn, base: str) -> None:
        """Add the value of a checkpoint as a line, where it was measured by the protocol of a curve."""
        run, step, variant = parse_checkpoint(base)
        protocols = {curve.protocol for curve in drawn.curves}
        try:
            buckets = client.buckets(run, [self.metric], points=2, variant=variant, first=step, last=step)
            own = [curve for curve in curves_of(buckets) if curve.protocol in protocols]
        except UnknownName:
            own = []
        values = [point.value for curve in own for point in curve.points if isinstance(point.value, float)]
        if values:
            drawn.lines.append(Line(values[0], f"base {values[0]:.4g}"))
        else:
            drawn.notes.append(f"the base {base} has no value that is comparable with these")

    def _commands(self) -> Commands:
        runs = " ".join(map(shlex.quote, self.run))
        names = {"--x": self.x if self.x != "step" else None, "--variant": self.variant}
        options = "".join(f" {name} {shlex.quote(value)}" for name, value in names.items() if value)
        query = urlencode({"metric": self.metric, "x": self.x})
        return Commands(
            cli=f"evalsvc history {runs} --metric {shlex.quote(self.metric)}{options}",
            rest=f"/v1/runs/{quote(self.run[0], safe='')}/metrics?{query}",
        )


def watched(run: str) -> str:
    """Return a REST address whose answer is small and changes with a run's history and gaps."""
    return f"/v1/runs/{quote(run, safe='')}/metrics?limit=1"


def _newest_protocol(curves: Sequence[Curve]) -> str | None:
    """Return the protocol of the first run's newest value."""
    measured = [curve for curve in curves if curve.points]
    own = [curve for curve in measured if curve.run == measured[0].run]
    return max(own, key=lambda curve: curve.points[-1].x).protocol if own else None


def _origin(curves: Sequence[Curve]) -> str | None:
    """Return the address that tells how the first curve's newest measured value was made."""
    for curve in curves:
        steps = [point.x for point in curve.points if not point.imported]
        if steps:
            query = {"run": curve.run, "metric": curve.metric, "variant": curve.variant, "protocol": curve.protocol}
            return "/panels/origin.html?" + urlencode(query)
    return None


def _omitted(buckets: Buckets) -> Iterator[str]:
    """Yield how many values of a run have no place on the axis."""
    omitted = sum(series.omitted for series in buckets.series)
    if omitted:
        yield f"values of {buckets.run} whose checkpoints were posted without tokens_seen, left out: {omitted:,}"
    if buckets.x == "tokens" and buckets.gaps:
        yield f"gaps of {buckets.run} are shown along steps only: {len(buckets.gaps):,}"


def _notes(curves: Sequence[Curve], drawn: Sequence[Curve], protocol: str | None, scale: Scale) -> Iterator[str]:
    """Yield what the chart leaves out, and what its marks mean."""
    others = {curve.protocol: curve for curve in curves if curve.protocol != protocol and curve.points}
    for other in others.values():
        words = other.differs or "its page says in what"
        yield (
            f"{other.label} was also measured by protocol {other.protocol}, which differs ({words}): those values are "
            "not comparable with these"
        )
    points = [point for curve in drawn for point in curve.points]
    if scale == "log":
        hidden = sum(isinstance(point.value, float) and point.value <= 0 for point in points)
        if hidden:
            yield f"values up to zero, which have no place on a logarithmic scale: {hidden:,}"
        cut = sum(point.low is not None and point.low <= 0 < _number(point.value) for point in points)
        if cut:
            yield f"intervals that reach down to zero, which a logarithmic scale cannot show: {cut:,}"
    if any(point.count > 1 for point in points):
        yield "each point is the last value of several steps; the light band is their range"
    if any(point.stderr is not None for point in points):
        yield "the band around a curve is the interval of each value at the level 95 %"
    kinds = {point.kind for point in points}
    marks = {"imported": "a square is an imported value", "virtual": "a triangle is of weights computed from others"}
    yield from (words for kind, words in marks.items() if kind in kinds)


def _number(value: Number) -> float:
    return value if isinstance(value, float) else 0.0


def _table(curves: Sequence[Curve], missing: Sequence[Missing], axis: Literal["step", "tokens"]) -> Table:
    """Return the values and gaps, newest first."""
    names = list(dict.fromkeys(name for curve in curves for point in curve.points for name in point.companions or ()))
    columns = ["run", axis, "value", "± stderr", "low", "high", "n", "values", "origin", *names]
    rows: list[list[str | int | float | None]] = [
        [
            curve.label,
            point.x,
            point.value,
            point.stderr,
            point.low,
            point.high,
            point.n,
            point.count,
            point.kind,
            *((point.companions or {}).get(name) for name in names),
        ]
        for curve in curves
        for point in curve.points
    ]
    if axis == "step":
        rows += [
            [each.label, each.gap.step, *[None] * 6, f"{each.gap.why}: {each.gap.message}", *(None for _ in names)]
            for each in missing
        ]
    order = {label: -at for at, label in enumerate(dict.fromkeys(str(row[0]) for row in rows))}
    rows.sort(key=lambda row: (int(row[1] or 0), order[str(row[0])]), reverse=True)
    return Table(columns, rows)
