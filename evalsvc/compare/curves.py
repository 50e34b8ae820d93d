"""Several runs on one curve: a metric's series side by side where they have one protocol, and refused where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from evalsvc.errors import NotComparable, UnknownName
from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import Direction, Word
from evalsvc.spec.documents.history import Axis, History, ImportSource, ValueSeries
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.protocol import describe_differences, describe_fields, differences, distinguishing, labelled

Content = Callable[[str], Mapping[str, object]]
"""What is behind a protocol's id."""


class RunSeries(ValueSeries):
    """A series of one of several runs; `differs` tells its protocol from those of all runs."""

    run: str


class Curve(Document):
    """A metric under one protocol, with a series per run and variant."""

    metric: str
    unit: str
    direction: Direction
    protocol: str | None
    """None: forced onto one curve from several protocols, which `differs` of each series tells apart."""
    differs: dict[str, object]
    series: list[RunSeries]


class JoinedHistories(Document):
    """Histories of several runs as curves."""

    runs: list[str]
    x: Axis
    forced: bool
    curves: list[Curve]
    refused: dict[str, str]
    """By metric of which the runs have no protocol in common, the reason."""
    imports: dict[str, dict[str, ImportSource]]
    """By run and id of an import, where imported values are from."""


class TradeoffPoint(Document):
    """A value of a metric at a checkpoint."""

    value: float | Word
    stderr: float | None
    import_: int | None
    """Id of the import that the value is from; None where the value was measured."""


class Tradeoff(Document):
    """Histories as points along a metric, one for each of its values."""

    x: Axis
    against: str
    columns: list[str]
    """Labels of the other curves: the metric, and how it was measured where that was in several ways."""
    rows: list[dict[str, object]]
    """Each with `run`, `variant` and the place on the axis, and by `against` and column a `TradeoffPoint` or None."""
    imports: dict[str, dict[str, ImportSource]]


def join_histories(histories: Sequence[History], content: Content, force: bool = False) -> JoinedHistories:
    """Join histories of several runs.

    A metric of which the runs have no protocol in common is refused; with `force` it is one curve. `content` is asked
    only where protocols differ.
    """
    by_metric: dict[str, list[RunSeries]] = {}
    for history in histories:
        for series in history.series:
            by_metric.setdefault(series.metric, []).append(RunSeries(**vars(series), run=history.run))
    curves: list[Curve] = []
    refused: dict[str, str] = {}
    for metric, found in by_metric.items():
        told_apart = _tell_apart(found, content)
        strangers = _strangers(found)
        if strangers is None:
            curves += _by_protocol(told_apart)
        elif force:
            curves.append(_curve(told_apart, None))
        else:
            refused[metric] = _reason(*strangers, content)
    return JoinedHistories(
        runs=[history.run for history in histories],
        x=histories[0].x,
        forced=force,
        curves=curves,
        refused=refused,
        imports={history.run: history.imports for history in histories},
    )


def tabulate(joined: JoinedHistories, metric: str) -> Tradeoff:
    """Put joined histories along one of their metrics.

    Raises:
        NotComparable: the metric was measured by several protocols, so there is no one axis.
        UnknownName: it was not measured.
    """
    mine = [curve for curve in joined.curves if curve.metric == metric]
    others = [curve for curve in joined.curves if curve.metric != metric]
    if reason := joined.refused.get(metric):
        raise NotComparable(f"{metric} is no axis for these runs: {reason}")
    if not mine:
        raise UnknownName.among("metric", metric, {curve.metric for curve in others})
    if len(mine) > 1 or mine[0].protocol is None:
        told = "; ".join(describe_fields(curve.differs) for curve in mine)
        raise NotComparable(f"{metric} was measured by several protocols, so nothing is shown against it: {told}")
    columns = {labelled(curve.metric, curve.differs): _by_place(curve) for curve in others}
    rows: list[dict[str, object]] = [
        {
            "run": run,
            "variant": variant,
            joined.x: at,
            metric: point,
            **{label: points.get((run, variant, at)) for label, points in columns.items()},
        }
        for (run, variant, at), point in _by_place(mine[0]).items()
    ]
    return Tradeoff(x=joined.x, against=metric, columns=list(columns), rows=rows, imports=joined.imports)


def require_comparable(joined: JoinedHistories) -> None:
    """NotComparable where `join_histories` refused a metric; the fields that differ are in the message."""
    if joined.refused:
        found = "; ".join(f"{metric}: {reason}" for metric, reason in joined.refused.items())
        raise NotComparable(
            f"runs that were measured by different protocols are not put on one curve: {found}; evaluate one of them "
            "again, or read them side by side with --force"
        )


def _by_place(curve: Curve) -> dict[tuple[str, str, int], dict[str, object]]:
    """Return the points of a curve as JSON, by run, variant and x."""
    return {
        (series.run, series.variant, at): content_of(TradeoffPoint(value=value, stderr=stderr, import_=origin))
        for series in curve.series
        for at, value, stderr, origin in zip(series.x, series.value, series.stderr, origins(series), strict=True)
    }


def origins(series: ValueSeries) -> Sequence[int | None]:
    """Return of each value of a series the id of its import; None where it was measured."""
    return series.import_ or [None] * len(series.x)


def _tell_apart(found: Sequence[RunSeries], content: Content) -> list[RunSeries]:
    """The series with `differs` over all runs, not only over their own."""
    ids = dict.fromkeys(series.protocol for series in found)
    differs = distinguishing({identity: content(identity) if len(ids) > 1 else {} for identity in ids})
    return [replace(series, differs=differs[series.protocol]) for series in found]


def _strangers(found: Iterable[RunSeries]) -> tuple[RunSeries, RunSeries] | None:
    """A series of the first run and one of a run that shares no protocol with it, or with those before."""
    by_run: dict[str, dict[str, RunSeries]] = {}
    for series in found:
        by_run.setdefault(series.run, {})[series.protocol] = series
    first, *others = by_run.values()
    common = dict(first)
    for other in others:
        common = {identity: series for identity, series in common.items() if identity in other}
        if not common:
            return next(iter(first.values())), next(iter(other.values()))
    return None


def _by_protocol(found: Iterable[RunSeries]) -> list[Curve]:
    by_protocol: dict[str, list[RunSeries]] = {}
    for series in found:
        by_protocol.setdefault(series.protocol, []).append(series)
    return [_curve(members, identity) for identity, members in by_protocol.items()]


def _curve(members: list[RunSeries], protocol: str | None) -> Curve:
    first = members[0]
    return Curve(
        metric=first.metric,
        unit=first.unit,
        direction=first.direction,
        protocol=protocol,
        differs=first.differs if protocol is not None else {},
        series=members,
    )


def _reason(one: RunSeries, other: RunSeries, content: Content) -> str:
    found = differences(content(one.protocol), content(other.protocol))
    fields = describe_differences(found) or f"{one.protocol} → {other.protocol}"
    return f"{one.run} and {other.run} differ in {fields}"
