"""All runs, one by one or in groups, with their headline metrics; and the state of the service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import inf, isfinite
from statistics import fmean, stdev
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlencode

from pydantic import AfterValidator, Field, field_validator

from evalsvc.client.reader import ServiceReader
from evalsvc.compare.difference_curves import level_of_looks
from evalsvc.errors import InvalidRequest, ItemsLost, NotComparable, UnknownName
from evalsvc.metrics.intervals import LEVEL
from evalsvc.spec.documents import Comparison, HeadlineSeries, RunHeadlines, RunSummary
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.formats import segment
from evalsvc.web.page import Content, Page
from evalsvc.web.pages.run import MAX_OVERLAID, RunName

SHOWN, COLUMNS = 50, 6

SPARK_POINTS, MANY_TAGS = 40, 50

QUICK_SECONDS, SECONDS = 0.6, 2.0
"""Time that a request for headlines may take for comparisons. The service keeps verdicts, so that a next request has
more of them."""

Text = Annotated[str, Field(max_length=300)]
T = TypeVar("T")

ORDERS: Mapping[str, tuple[str, Callable[[RunSummary], Any]]] = {
    "name": ("name", lambda run: run.name),
    "newest": ("newest first", lambda run: -datetime.fromisoformat(run.created_at).timestamp()),
    "steps": ("last step", lambda run: 1 if run.last_step is None else -run.last_step),
    "evaluated": ("last step with a value", lambda run: 1 if run.last_value_step is None else -run.last_value_step),
    "waiting": ("most waiting first", lambda run: -run.waiting),
    "failed": ("most failures first", lambda run: -run.failed),
}
"""Orders of the rows that need no metric: the words, and the key by which runs are sorted."""

BY_METRIC = "metric:"
"""Beginning of the orders by a metric's newest value, the best value first."""

Way = Literal["by", "across"]
"""`by`: runs with the same value of a tag. `across`: runs that differ in nothing but the tag, such as the seed."""


@dataclass(frozen=True)
class Spread:
    """A metric of the runs of a group, at the highest step that all of them have reached."""

    head: HeadlineSeries
    n: int
    mean: float
    deviation: float | None
    """Standard deviation between runs; None for one run."""
    low: float
    high: float
    first_step: int
    last_step: int
    """Steps of the values, from the lowest to the highest."""
    other_protocols: int
    """Number of runs that are left out since they were measured by another protocol."""
    curve: Mapping[int, tuple[float, float]]
    """Mean and standard deviation by step, at the steps that all of the runs have."""


@dataclass(frozen=True)
class Group:
    title: str
    runs: Sequence[RunSummary]
    spreads: Mapping[str, Spread]


@dataclass(frozen=True)
class Row:
    run: RunSummary
    series: Mapping[str, HeadlineSeries]

    def against_base(self, verdict: str) -> list[HeadlineSeries]:
        """Return the metrics whose newest value has this verdict against the base, without those at chance."""
        series = [item for item in self.series.values() if item.at_chance_since is None]
        return [
            item for item in series if ("base", verdict) in [(each.side, each.verdict) for each in item.verdicts or []]
        ]


@dataclass(frozen=True)
class Leading:
    """The two runs with the best newest values of a metric, and how they differ in all columns."""

    head: HeadlineSeries
    of: int
    """Number of runs that the two are the best of."""
    comparison: Comparison
    """The second best run's checkpoint as a, and the best run's as b."""


class RunsPage(Page):
    template: ClassVar = "runs.html"

    find: Annotated[str, Field(max_length=128)] = ""
    """Only runs whose name contains this text; `only` has whole names."""
    tag: Annotated[tuple[Text, ...], Field(max_length=8)] = ()
    """Only runs with this tag, as KEY or KEY=VALUE; repeat for several tags."""
    only: Annotated[tuple[RunName, ...], Field(max_length=SHOWN)] = ()
    metric: Annotated[tuple[Text, ...], Field(max_length=COLUMNS + 1), AfterValidator(lambda m: m[-COLUMNS:])] = ()
    """Metrics of the columns, the last `COLUMNS` of them; by default, the headline metrics that most runs have."""
    sort: Text = "name"
    """Order of the rows: a key of `ORDERS`, or `metric:NAME` for the newest value, the best first."""
    reverse: bool = False
    """Whether the order is reversed. Runs without a value of the metric stay last."""
    group: Annotated[str, Field(max_length=310, pattern=r"^((by|across):.+)?$")] = ""
    """`by:TAG`: a row for the runs with the same value of a tag. `across:TAG`: a row for the runs that have all other
    tags in common, such as those that differ in the seed alone."""
    pin: Annotated[tuple[RunName, ...], Field(max_length=1 + MAX_OVERLAID)] = ()
    """Runs that stay on top of every choice and order of runs."""
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    verdicts: Literal["quick", "all"] = "quick"
    """Which comparisons the page waits for: those of QUICK_SECONDS, or all."""

    @field_validator("sort")
    @classmethod
    def _is_order(cls, value: str) -> str:
        if value not in ORDERS and not value.startswith(BY_METRIC):
            raise InvalidRequest(UnknownName.among("order", value, [*ORDERS, BY_METRIC + "NAME"]).message)
        return value

    def content(self, source: ServiceReader) -> Content:
        everything = source.runs()
        runs = [run for run in everything if self.find.lower() in run.name.lower()]
        runs = [run for run in runs if not self.only or run.name in self.only]
        runs = self._sorted(source, [run for run in runs if all(_has_tag(run, tag) for tag in self.tag)])
        pinned = [] if self.group else [run for run in everything if run.name in self.pin]
        runs = pinned + [run for run in runs if run not in pinned]
        tags = Counter(key for run in everything for key in run.tags)
        values = {
            "query": self,
            "orders": ORDERS,
            "tags": sorted(tag for tag, _ in tags.most_common(MANY_TAGS)),
            "shown": SHOWN,
            "link": self.link,
            "overlay": overlay_address,
            "most": 1 + MAX_OVERLAID,
            "actions": self._actions(),
            **(self._groups(source, runs) if self.group else self._rows(source, runs)),
        }
        return Content("Runs", values, ["/v1/runs?limit=1"])

    def link(self, **changes: object) -> str:
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
        query = self.model_copy(update={"page": 1, "verdicts": "quick", **given}).to_query()
        return f"/?{query}" if query else "/"

    def _actions(self) -> Mapping[str, str | None]:
        table = "/v1/table?" + urlencode([*(("run", name) for name in self.only), ("format", "csv")])
        both = "/compare?" + urlencode(list(zip("ab", self.only, strict=False)))
        compare, export = both if len(self.only) == 2 else None, table if self.only else None
        return {"Overlay": overlay_address(self.only), "Compare": compare, "Export": export}

    def _sorted(self, source: ServiceReader, runs: list[RunSummary]) -> list[RunSummary]:
        if self.sort in ORDERS:
            return sorted(runs, key=ORDERS[self.sort][1], reverse=self.reverse)
        metric = self.sort.removeprefix(BY_METRIC)
        rows = source.headlines([run.name for run in runs], [metric])
        places: dict[str, tuple[int, float]] = {}
        for row in rows:
            for series in row.series:
                value, sign = series.latest.value, -1 if (series.direction == "higher") != self.reverse else 1
                is_finite = isinstance(value, float) and isfinite(value)
                places[row.run] = (0, sign * float(value)) if is_finite else (1, inf)
        return sorted(runs, key=lambda run: places.get(run.name, (2, 0.0)))

    def _rows(self, source: ServiceReader, runs: Sequence[RunSummary]) -> Mapping[str, object]:
        part = self._part(runs)
        headlines = self._headlines(source, [run.name for run in part]) if part else []
        rows = [Row(run, {item.metric: item for item in row.series}) for run, row in zip(part, headlines, strict=True)]
        columns = self.metric or _columns(series for row in rows for series in row.series)
        heads = {item.metric: item for row in rows for item in row.series.values()}
        known = source.headline(part[0].name).names if heads and not self.only else []
        first = self.sort.removeprefix(BY_METRIC) if self.sort not in ORDERS else None
        leading = leading_of(source, rows, sorted(columns, key=lambda metric: metric != first))
        values: Mapping[str, object] = {"rows": rows, "groups": [], "columns": columns, "heads": heads, "known": known}
        return {**values, "total": len(runs), "open": _open(headlines), "leading": leading}

    def _headlines(self, source: ServiceReader, names: Sequence[str]) -> list[RunHeadlines]:
        ask = partial(source.headlines, names, self.metric, points=SPARK_POINTS)
        headlines, left = ask(compare=QUICK_SECONDS), len(names) + 1
        while self.verdicts == "all" and 0 < _open(headlines) < left:
            left = _open(headlines)
            headlines = ask(compare=SECONDS)
        return headlines

    def _groups(self, source: ServiceReader, runs: Sequence[RunSummary]) -> Mapping[str, object]:
        kind, _, tag = self.group.partition(":")
        way: Way = "by" if kind == "by" else "across"
        groups = grouped(runs, way, tag)
        part = dict(self._part(list(groups.items())))
        rows = list(groups_of(source, part, self.metric))
        columns = self.metric or _columns(metric for group in rows for metric in group.spreads)
        heads = {metric: spread.head for group in rows for metric, spread in group.spreads.items()}
        empty: Mapping[str, object] = {"rows": [], "heads": heads, "known": [], "open": 0}
        return {**empty, "groups": rows, "columns": columns, "total": len(groups)}

    def _part(self, items: Sequence[T]) -> Sequence[T]:
        first = (self.page - 1) * SHOWN
        return items[first : first + SHOWN]


def grouped(runs: Iterable[RunSummary], way: Way, tag: str) -> dict[str, list[RunSummary]]:
    """Return the runs by the title of their group, in the order of the runs. Runs without the tag have one group."""
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        rest = ", ".join(f"{key}={value}" for key, value in sorted(run.tags.items()) if key != tag)
        title = f"{tag}={run.tags.get(tag)}" if way == "by" else rest or f"no tag but {tag}"
        groups.setdefault(title if tag in run.tags else f"without the tag {tag}", []).append(run)
    return groups


def groups_of(source: ServiceReader, groups: dict[str, list[RunSummary]], metrics: Sequence[str]) -> Iterator[Group]:
    """Yield the groups with the spreads of some metrics, or without any of the headline metrics."""
    for title, runs in groups.items():
        steps = [run.last_value_step for run in runs if run.last_value_step is not None]
        ask = partial(source.headlines, points=SPARK_POINTS, last=min(steps, default=None))
        series = [item for row in ask([run.name for run in runs], metrics) for item in row.series]
        names = dict.fromkeys(item.metric for item in series)
        spreads = {name: _spread([item for item in series if item.metric == name]) for name in names}
        yield Group(title, runs, {name: spread for name, spread in spreads.items() if spread is not None})


def _spread(series: Sequence[HeadlineSeries]) -> Spread | None:
    protocols = [item.protocol for item in series]
    protocol = max(protocols, key=protocols.count)
    latest = [item.latest for item in series if item.protocol == protocol]
    values = [point.value for point in latest if isinstance(point.value, float)]
    steps = [point.step for point in latest if isinstance(point.value, float)]
    if not values:
        return None
    curves = [dict(zip(item.x, item.values, strict=True)) for item in series if item.protocol == protocol]
    columns = {step: [value for curve in curves if isinstance(value := curve.get(step), float)] for step in curves[0]}
    return Spread(
        head=series[0],
        n=len(values),
        mean=fmean(values),
        deviation=stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
        first_step=min(steps),
        last_step=max(steps),
        other_protocols=len(series) - protocols.count(protocol),
        curve={step: (fmean(all_), stdev(all_)) for step, all_ in columns.items() if 1 < len(all_) == len(curves)},
    )


def leading_of(source: ServiceReader, rows: Sequence[Row], metrics: Sequence[str]) -> Leading | None:
    """Compare the two best runs by the first metric that ranks two runs, at the level for the best of all; None without
    such a metric."""
    for metric in metrics:
        ranked = list(_ranked(rows, metric))
        if len(ranked) > 1:
            break
    else:
        return None
    (_, b, best), (_, a, second), *_ = sorted(ranked, key=lambda place: place[0])
    shared = [metric for metric in metrics if metric in best.series and metric in second.series]
    try:
        comparison = source.compare(a, b, shared, level=level_of_looks(LEVEL, len(ranked) - 1))
    except (ItemsLost, NotComparable, UnknownName):  # a checkpoint may have been replaced, and have no values yet
        return None
    return Leading(best.series[metric], len(ranked), comparison)


def _ranked(rows: Sequence[Row], metric: str) -> Iterator[tuple[float, str, Row]]:
    """Yield the place, the newest checkpoint and the row of each run with a measured value by the usual protocol."""
    measured = [(row, row.series[metric]) for row in rows if metric in row.series]
    protocols = [series.protocol for _, series in measured]
    for row, series in measured:
        value, sign = series.latest.value, {"higher": -1, "lower": 1, "none": 0}[series.direction]
        is_usual = series.protocol == max(protocols, key=protocols.count)
        if sign and is_usual and series.latest.import_ is None and isinstance(value, float) and isfinite(value):
            yield sign * value, checkpoint_name(row.run.name, series.latest.step, series.variant), row


def overlay_address(names: Sequence[str]) -> str | None:
    """Return the address of the curves of runs over each other; None unless there are as many as a chart can show."""
    if not 1 < len(names) <= 1 + MAX_OVERLAID:
        return None
    return f"/runs/{segment(names[0])}?{urlencode([('with', name) for name in names[1:]])}"


def _has_tag(run: RunSummary, tag: str) -> bool:
    key, equals, value = tag.partition("=")
    return key in run.tags and (not equals or run.tags[key] == value)


def _open(headlines: Iterable[RunHeadlines]) -> int:
    return sum(any(item.verdicts is None for item in run.series) for run in headlines)


def _columns(metrics: Iterable[str]) -> list[str]:
    counts = Counter(metrics)
    chosen = {metric for metric, _ in counts.most_common(COLUMNS)}
    return [metric for metric in counts if metric in chosen]


class StatusPage(Page):
    template: ClassVar = "status.html"

    def content(self, source: ServiceReader) -> Content:
        status = source.status()
        runs = sorted(status.queue.runs, key=lambda run: (-run.queued, -run.running, run.run))
        return Content("Status", {"status": status, "runs": runs}, ["/v1/status"])
