"""Curves of a metric over several runs: series with the same protocol share a curve, and others are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evalsvc.errors import NotComparable, UnknownName
from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import Direction, Word
from evalsvc.spec.documents.history import Axis, History, ImportSource, ValueSeries
from evalsvc.spec.protocol import (
    describe_differences,
    describe_fields,
    differences,
    distinguishing,
    labelled,
    origin_of,
)

Content = Callable[[str], Mapping[str, object]]
"""Function that returns the content of a protocol by its id."""


class RunSeries(ValueSeries):
    """A series of one of several runs; `differs` distinguishes its protocol from the protocols of all these runs."""

    run: str


class Curve(Document):
    """A metric under one protocol, with a series per run and variant."""

    metric: str
    unit: str
    direction: Direction
    protocol: str | None
    """Id of the protocol; None if `force` put several protocols on the curve, see `differs` of each series."""
    differs: dict[str, object]
    """Fields that distinguish the protocol from other protocols of the metric."""
    series: list[RunSeries]


class JoinedHistories(Document):
    """Histories of several runs as curves."""

    runs: list[str]
    x: Axis
    forced: bool
    """Whether runs without a common protocol share a curve."""
    curves: list[Curve]
    refused: dict[str, str]
    """Reason why the runs have no common protocol, by metric."""
    imports: dict[str, dict[str, ImportSource]]
    """Sources of imported values, by run and by id of the import."""


class TradeoffPoint(Document):
    value: float | Word
    stderr: float | None
    low: float | None
    high: float | None
    import_: int | None
    """Id of the import that the value is from; None if the value was measured."""


class Tradeoff(Document):
    """Histories against a metric: one row of the other metrics' values for each value of the metric."""

    x: Axis
    against: str
    """Name of the metric that the other metrics are shown against."""
    columns: list[str]
    """Labels of the other curves: the metric, with the fields that distinguish its protocol if it has several."""
    rows: list[dict[str, object]]
    """Rows with `run`, `variant` and the place on the axis, and a `TradeoffPoint` or None for `against` and for each
    column."""
    imports: dict[str, dict[str, ImportSource]]
    """Sources of imported values, by run and by id of the import."""


def join_histories(histories: Sequence[History], content: Content, force: bool = False) -> JoinedHistories:
    """Join histories of several runs into curves.

    A metric for which the runs have no common protocol is refused, or with `force` put on one curve. `content` is
    called only where protocols differ.
    """
    by_metric: dict[str, list[RunSeries]] = {}
    for history in histories:
        for series in history.series:
            by_metric.setdefault(series.metric, []).append(RunSeries(**vars(series), run=history.run))
    curves: list[Curve] = []
    refused: dict[str, str] = {}
    for metric, all_series in by_metric.items():
        ids = dict.fromkeys(series.protocol for series in all_series)
        differs = distinguishing({identity: content(identity) if len(ids) > 1 else {} for identity in ids})
        labelled_series = [
            series.model_copy(update={"differs": origin_of(series.differs) | differs[series.protocol]})
            for series in all_series
        ]
        unrelated = _without_common_protocol(all_series)
        if unrelated is None:
            curves += [
                _curve([each for each in labelled_series if each.protocol == identity], identity) for identity in ids
            ]
        elif force:
            curves.append(_curve(labelled_series, None))
        else:
            first, second = unrelated
            differing = differences(content(first.protocol), content(second.protocol))
            fields = describe_differences(differing) or f"{first.protocol} → {second.protocol}"
            refused[metric] = f"{first.run} and {second.run} differ in {fields}"
    return JoinedHistories(
        runs=[history.run for history in histories],
        x=histories[0].x,
        forced=force,
        curves=curves,
        refused=refused,
        imports={history.run: history.imports for history in histories},
    )


def tabulate(joined: JoinedHistories, metric: str) -> Tradeoff:
    """Return joined histories with one of their metrics as the axis."""
    axis = [curve for curve in joined.curves if curve.metric == metric]
    others = [curve for curve in joined.curves if curve.metric != metric]
    if reason := joined.refused.get(metric):
        raise NotComparable(f"{metric} is no axis for these runs: {reason}; choose another metric for --against")
    if not axis:
        raise UnknownName.among("metric", metric, {curve.metric for curve in others})
    if len(axis) > 1 or axis[0].protocol is None:
        protocols = "; ".join(describe_fields(curve.differs) for curve in axis)
        raise NotComparable(
            f"{metric} was measured by several protocols ({protocols}), so it is no axis; choose another metric for "
            "--against"
        )
    columns = {labelled(curve.metric, curve.differs): _by_place(curve) for curve in others}
    rows: list[dict[str, object]] = []
    for place, point in _by_place(axis[0]).items():
        others_there = {label: points.get(place) for label, points in columns.items()}
        rows.append({**dict(zip(("run", "variant", joined.x), place, strict=True)), metric: point, **others_there})
    return Tradeoff(x=joined.x, against=metric, columns=list(columns), rows=rows, imports=joined.imports)


def require_comparable(joined: JoinedHistories) -> None:
    """Raise NotComparable if `join_histories` refused a metric; the message names the fields that differ."""
    if joined.refused:
        reasons = "; ".join(f"{metric}: {reason}" for metric, reason in joined.refused.items())
        raise NotComparable(
            f"runs that were measured by different protocols are not put on one curve: {reasons}; evaluate one of them "
            "again, or read them side by side with --force"
        )


def _by_place(curve: Curve) -> dict[tuple[str, str, int], dict[str, object]]:
    points = {}
    for series in curve.series:
        columns = series.value, series.stderr, series.low, series.high, origins(series)
        for at, *row in zip(series.x, *columns, strict=True):
            point = TradeoffPoint(**dict(zip(TradeoffPoint.model_fields, row, strict=True)))
            points[series.run, series.variant, at] = point.model_dump()
    return points


def origins(series: ValueSeries) -> Sequence[int | None]:
    """Return the id of the import of each value of a series; None for a value that was measured."""
    return series.import_ or [None] * len(series.x)


def _without_common_protocol(all_series: Iterable[RunSeries]) -> tuple[RunSeries, RunSeries] | None:
    by_run: dict[str, dict[str, RunSeries]] = {}
    for series in all_series:
        by_run.setdefault(series.run, {})[series.protocol] = series
    first, *others = by_run.values()
    common = dict(first)
    for other in others:
        common = {identity: series for identity, series in common.items() if identity in other}
        if not common:
            return next(iter(first.values())), next(iter(other.values()))
    return None


def _curve(members: list[RunSeries], protocol: str | None) -> Curve:
    first = members[0]
    differs = first.differs if protocol is not None else {}
    known: dict[str, Any] = {name: getattr(first, name) for name in ("metric", "unit", "direction")}
    return Curve(**known, protocol=protocol, differs=differs, series=members)
