"""Histories of runs as tables and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evalsvc.cli.tables import error_bar, explain_groups, say_curve, shown_items, shown_number
from evalsvc.cli.terminal import print_table, say, write_rows
from evalsvc.compare.curves import JoinedHistories, RunSeries, Tradeoff, TradeoffPoint, origins
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import Axis, History, ImportSource, ValueSeries
from evalsvc.spec.documents.reading import read
from evalsvc.spec.protocol import describe_fields


def print_history(history: History) -> None:
    """A run's values, with what tells several protocols of a metric apart, and where imported values are from."""
    columns = ["metric", "variant", "protocol", "differs", history.x, "value", "± stderr", "n", "unit", "imported from"]
    rows = [
        [
            series.metric,
            series.variant,
            series.protocol,
            describe_fields(series.differs),
            str(at),
            shown_number(value),
            error_bar(stderr),
            shown_items(n, groups),
            series.unit,
            _source(history.imports, origin) or "",
        ]
        for series in history.series
        for at, value, stderr, n, groups, origin in _values(series)
    ]
    if rows:
        print_table(columns, rows, optional=("differs", "imported from"))
        explain_groups(columns, rows)
    else:
        say(f"run {history.run} has no values yet")
    _print_omitted(history.series)


def print_curves(joined: JoinedHistories) -> None:
    """Several runs: a table per curve, with a line per step and a column per series."""
    for curve in joined.curves:
        say_curve(curve)
        columns = [_series_label(series, curve.protocol is None) for series in curve.series]
        cells = [_cells(series) for series in curve.series]
        steps = sorted({at for series in cells for at in series})
        print_table([joined.x, *columns], [[str(at), *(series.get(at, "") for series in cells)] for at in steps])
    _print_omitted([series for curve in joined.curves for series in curve.series])
    if not joined.curves and not joined.refused:
        say(f"runs {', '.join(joined.runs)} have no values yet")


def print_tradeoff(tradeoff: Tradeoff) -> None:
    """A line per checkpoint: a metric, and others beside it."""
    named, metrics = ["run", "variant", tradeoff.x], [tradeoff.against, *tradeoff.columns]
    rows = [
        [*(str(row[name]) for name in named), *(_shown_point(_point(row[metric])) for metric in metrics)]
        for row in tradeoff.rows
    ]
    print_table([*named, *metrics], rows)


def write_history_csv(history: History) -> None:
    """A history, a line per value."""
    write_rows([row for series in history.series for row in _csv_rows(series, history.x, history.imports)])


def write_curves_csv(joined: JoinedHistories) -> None:
    """Histories of several runs, a line per value."""
    every = [series for curve in joined.curves for series in curve.series]
    rows = [(series.run, row) for series in every for row in _csv_rows(series, joined.x, joined.imports[series.run])]
    write_rows([{"run": run, **row} for run, row in rows])


def _csv_rows(series: ValueSeries, x: Axis, imports: Mapping[str, ImportSource]) -> Iterator[dict[str, object]]:
    for at, value, stderr, n, groups, origin in _values(series):
        yield {
            "metric": series.metric,
            "variant": series.variant,
            "protocol": series.protocol,
            "differs": describe_fields(series.differs),
            x: at,
            "value": value,
            "stderr": stderr,
            "n": n,
            "groups": groups,
            "unit": series.unit,
            "direction": series.direction,
            "import": origin,
            "source": _source(imports, origin),
        }


def _values(
    series: ValueSeries,
) -> Iterator[tuple[int, float | Word, float | None, int | None, int | None, int | None]]:
    """Yield x, value, standard error, n, groups and import of each value."""
    groups = series.groups or [None] * len(series.x)
    return zip(series.x, series.value, series.stderr, series.n, groups, origins(series), strict=True)


def write_tradeoff_csv(tradeoff: Tradeoff) -> None:
    """A line per checkpoint, with a column for each value and each standard error."""
    rows = []
    for row in tradeoff.rows:
        plain = {key: row[key] for key in ("run", "variant", tradeoff.x)}
        for metric in (tradeoff.against, *tradeoff.columns):
            point = _point(row[metric])
            plain |= {metric: point and point.value, f"{metric} stderr": point and point.stderr}
            plain |= {f"{metric} source": point and _source(tradeoff.imports[str(row["run"])], point.import_)}
        rows.append(plain)
    write_rows(rows)


def _point(cell: object) -> TradeoffPoint | None:
    return None if cell is None else read(TradeoffPoint, cell)


def _shown_point(point: TradeoffPoint | None) -> str:
    return "" if point is None else _cell(point.value, point.stderr, point.import_)


def _cell(value: float | Word, stderr: float | None, origin: int | None) -> str:
    """A value with its error; one that was not measured here is marked."""
    return " ".join(filter(None, [shown_number(value), error_bar(stderr), "" if origin is None else "(imported)"]))


def _source(imports: Mapping[str, ImportSource], origin: int | None) -> str | None:
    """Where an imported value is from; None where it was measured."""
    return None if origin is None else imports[str(origin)].source


def _print_omitted(series: Sequence[ValueSeries]) -> None:
    if omitted := sum(one.omitted for one in series):
        say(f"{omitted} values of checkpoints that were posted without tokens_seen are not shown")


def _series_label(series: RunSeries, several: bool) -> str:
    variant = series.variant if series.variant != "raw" else ""
    return " ".join(filter(None, [series.run, variant, describe_fields(series.differs) if several else ""]))


def _cells(series: RunSeries) -> dict[int, str]:
    columns = zip(series.x, series.value, series.stderr, origins(series), strict=True)
    return {at: _cell(value, stderr, origin) for at, value, stderr, origin in columns}
