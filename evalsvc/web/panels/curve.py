"""A metric of one or several runs along training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar
from urllib.parse import quote, urlencode

from pydantic import Field

from evalsvc.client.reader import ServiceReader, locate
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.metrics.definitions import main_metric, title_of
from evalsvc.spec.documents.history import Axis, BucketSeries
from evalsvc.spec.names import MAX_STEP
from evalsvc.spec.protocol import describe_fields, origin_of
from evalsvc.web.charts import Along, Scale, curve_chart
from evalsvc.web.curves import Curve, Line, Missing, companions_of, lines_of, missing_of, smoothed
from evalsvc.web.panel import Cell, Commands, MetricName, Panel, PanelQuery, RunNames, Table

EXACT = 500
"""Most values of a curve that are all drawn; a curve of more values is drawn in buckets."""

BUCKETS, BUCKETS_OF_ALL = 250, 500
"""Most buckets of a curve, about one per pixel of a page's chart, and of all runs, whose number costs a page time."""

MOST_BUCKETS = 10_000
"""Most buckets that the service makes of a series."""

Bound = Annotated[int, Field(ge=0, le=MAX_STEP)] | None
Weight = Annotated[float, Field(ge=0, le=0.99)]


@dataclass
class _Drawn:
    """What the chart of a metric has, and sentences about what the chart leaves out."""

    runs: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class CurveQuery(PanelQuery):
    name: ClassVar = "curve"

    run: RunNames
    """Runs, drawn over each other."""
    metric: MetricName
    protocol: Annotated[str, Field(max_length=64)] | None = None
    """Id of the protocol; by default, the protocol of the first run's newest value."""
    variant: Annotated[str, Field(max_length=128)] | None = None
    """Variant of the weights; by default, every variant."""
    base: Annotated[str, Field(max_length=500)] | None = None
    """Checkpoint whose value is drawn as a line, as RUN@STEP or RUN@STEP:VARIANT."""
    x: Axis = "step"
    scale: Scale = "linear"
    """Scale of the values; `along` is that of the axis."""
    along: Along = "auto"
    smooth: Weight = 0.0
    """Weight of neighbours in the smoothed curve, which averages over about (1 + smooth) / (1 − smooth) values."""
    first: Annotated[Bound, Field(alias="from")] = None
    last: Annotated[Bound, Field(alias="to")] = None
    points: Annotated[int | None, Field(ge=2, le=2000)] = None
    """Most points of a curve; a longer history is drawn in buckets. None: all of 500 values, but 250 buckets of more,
    and fewer buckets for each of several runs."""

    def panel(self, source: ServiceReader) -> Panel:
        drawn = self._read(source)
        measured = [curve for curve in drawn.curves if curve.series.x]
        of_first = [curve.series for curve in measured if curve.run == measured[0].run]
        newest = max(of_first, key=lambda series: series.x[-1]).protocol if of_first else None
        protocol = self.protocol or newest
        curves = [curve for curve in drawn.curves if curve.series.protocol == protocol]
        has_points = any(curve.series.x for curve in curves)
        origins = [{"run": curve.run, "metric": self.metric} for curve in curves if 0 in curve.series.imported]
        spec = curve_chart(
            curves, drawn.missing, drawn.lines, axis=self.x, scale=self.scale, along=self.along, smooth=self.smooth > 0
        )
        runs, query = " ".join(map(shlex.quote, self.run)), urlencode({"metric": self.metric, "x": self.x})
        options = "" if self.x == "step" else f" --x {self.x}"
        options += f" --variant {shlex.quote(self.variant)}" if self.variant else ""
        return Panel(
            query=self,
            title=self.metric,
            words=title_of(self.metric) or "",
            subtitle=f"{', '.join(self.run)}, protocol {(protocol or '–')[:8]}",
            parts=[*self.run, self.metric, *(["log"] if "log" in (self.scale, self.along) else [])],
            spec=spec if has_points or drawn.missing else None,
            table=_table(curves, drawn.missing, self.x),
            commands=Commands(
                cli=f"evalsvc history {runs} --metric {shlex.quote(self.metric)}{options}",
                rest=f"/v1/runs/{quote(self.run[0], safe='')}/metrics?{query}",
            ),
            notes=[*drawn.notes, *_notes(drawn.curves, curves, protocol, self.scale)],
            protocols=[protocol] if protocol else [],
            origin=f"/protocols/{protocol}?{urlencode(origins[0])}" if origins else None,
            watched=[watched(run) for run in drawn.runs],
        )

    def _read(self, source: ServiceReader) -> _Drawn:
        drawn = _Drawn()
        for run in self.run:
            try:
                self._add(source, run, drawn)
            except (UnknownName, InvalidRequest) as error:
                if run == self.run[0]:
                    raise
                drawn.notes.append(f"{run} is not drawn: {error.message}")
        if self.base is not None:
            run, step, variant = locate(source, self.base)
            protocols = {curve.series.protocol for curve in drawn.curves}
            try:
                series = source.buckets(run, [self.metric], points=2, variant=variant, first=step, last=step).series
            except UnknownName:
                series = []
            known = [value for item in series if item.protocol in protocols for value in item.last]
            if values := [value for value in known if isinstance(value, float)]:
                drawn.lines.append(Line(values[0], f"base {values[0]:.4g}"))
            else:
                drawn.notes.append(f"the base {self.base} has no value that is comparable with these")
        return drawn

    def _add(self, source: ServiceReader, run: str, drawn: _Drawn) -> None:
        read = partial(source.buckets, run, variant=self.variant, x=self.x)
        points = self.points or min(BUCKETS, BUCKETS_OF_ALL // len(self.run))
        buckets = read([self.metric], points=points, first=self.first, last=self.last)
        counts = [sum(series.count) for series in buckets.series]
        is_merged = any(count > len(series.x) for count, series in zip(counts, buckets.series, strict=True))
        if is_merged and max(counts) <= (self.points or EXACT):
            points = MOST_BUCKETS  # few values that are merely close to one another
            buckets = read([self.metric], points=points, first=self.first, last=self.last)
        measured = [series for series in buckets.series if series.metric == self.metric]
        names = [known.name for known in buckets.names if main_metric(known.name, {self.metric}) == self.metric]
        places = [x for series in measured for x in series.x]
        others: list[BucketSeries] = []
        if names and places:
            last = max(places) if self.last is None else self.last  # the same ends, so that both have the same ranges
            others = read(names, points=points, first=buckets.start, last=last).series
        curves = [
            Curve(run, item, smoothed(item, self.smooth) if self.smooth else (), companions_of(item, others))
            for item in measured
        ]
        drawn.runs.append(run)
        drawn.curves += curves
        drawn.lines += [line for series in measured if series.x for line in lines_of(series, others)]
        drawn.missing += missing_of(buckets, curves)
        if buckets.more_gaps:
            drawn.notes.append(f"{run} has more gaps, at lower steps")
        if omitted := sum(series.omitted for series in buckets.series):
            drawn.notes.append(
                f"values of {run} whose checkpoints were posted without tokens_seen, left out: {omitted:,}"
            )
        if buckets.x == "tokens" and buckets.gaps:
            drawn.notes.append(f"gaps of {run} are shown along steps only: {len(buckets.gaps):,}")


def watched(run: str) -> str:
    """Return a REST address whose answer is small and changes with a run's history and gaps."""
    return f"/v1/runs/{quote(run, safe='')}/metrics?limit=1"


def _notes(curves: Sequence[Curve], drawn: Sequence[Curve], protocol: str | None, scale: Scale) -> Iterator[str]:
    others = {item.series.protocol: item for item in curves if item.series.protocol != protocol and item.series.x}
    for other in others.values():
        words = describe_fields(other.series.differs) or "its page says in what"
        yield (
            f"{other.label} was also measured by protocol {other.series.protocol}, which differs ({words}): those "
            "values are not comparable with these"
        )
    if given := [curve.label for curve in drawn if origin_of(curve.series.differs)]:
        yield f"external images, which evalsvc did not sample: {', '.join(dict.fromkeys(given))}"
    shown = [curve.series for curve in drawn]
    if scale == "log":
        pairs = [pair for series in shown for pair in zip(series.last, series.low, strict=True)]
        if hidden := sum(isinstance(value, float) and value <= 0 for value, _ in pairs):
            yield f"values up to zero, which have no place on a logarithmic scale: {hidden:,}"
        if cut := sum(low is not None and isinstance(value, float) and low <= 0 < value for value, low in pairs):
            yield f"intervals that reach down to zero, which a logarithmic scale cannot show: {cut:,}"
    if any(count > 1 for series in shown for count in series.count):
        yield "each point is the last value of several steps; the light band is their range"
    if any(stderr is not None for series in shown for stderr in series.stderr):
        yield "the band around a curve is the interval of each value at the level 95 %"
    origins = {curve.origin(at) for curve in drawn for at in range(len(curve.series.x))}
    marks = {"imported": "a square is an imported value", "virtual": "a triangle is of weights computed from others"}
    yield from (words for origin, words in marks.items() if origin in origins)


def _table(curves: Sequence[Curve], missing: Sequence[Missing], axis: Axis) -> Table:
    names = list(dict.fromkeys(name for curve in curves for x in curve.series.x for name in curve.companions_at(x)))
    rows: list[list[Cell]] = []
    for curve in curves:
        series, measured = curve.series, describe_fields(origin_of(curve.series.differs)) or "measured"
        origins = [measured if (of := curve.origin(at)) == "measured" else of for at in range(len(series.x))]
        columns = (series.x, series.last, series.stderr, series.low, series.high, series.n, series.count, origins)
        rows += [
            [curve.label, *cells, *map(curve.companions_at(cells[0]).get, names)]
            for cells in zip(*columns, strict=True)
        ]
    if axis == "step":
        rows += [
            [item.label, item.gap.step, *[None] * 6, f"{item.gap.why}: {item.gap.message}", *[None] * len(names)]
            for item in missing
        ]
    order = {label: -at for at, label in enumerate(dict.fromkeys(str(row[0]) for row in rows))}
    rows.sort(key=lambda row: (int(row[1] or 0), order[str(row[0])]), reverse=True)
    return Table(["run", axis, "value", "± stderr", "low", "high", "n", "values", "origin", *names], rows)
