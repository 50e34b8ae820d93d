"""Histories of runs as tables and as CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from evalsvc.cli.companions import Place, companion_name, divide_rows, yardsticks
from evalsvc.cli.tables import YARDSTICKS, error_bar, explain_groups, say_curve, shown_items, shown_number
from evalsvc.cli.terminal import one_line, print_table, say, write_rows
from evalsvc.compare.curves import JoinedHistories, RunSeries, Tradeoff, TradeoffPoint, origins
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import (
    Axis,
    Buckets,
    BucketSeries,
    History,
    ImportSource,
    LeftOutMetric,
    ValueSeries,
)
from evalsvc.spec.documents.reading import read
from evalsvc.spec.protocol import describe_fields

NOT_MEASURED = "not measured"
"""Value of a metric that an evaluation was asked for and could not measure."""

REASON = "why there is no value"


def print_history(
    history: History, *, named: Collection[str] = (), left_out: Sequence[LeftOutMetric] = (), whole: bool = False
) -> None:
    """Print the values of a run, a row each, with where imported values are from, and why others are missing.

    Perplexities and other companions are shown next to their metric; those in `named` have rows, and with `whole` all.
    """
    columns = ["metric", "variant", "protocol", "differs", history.x, "value", "± stderr"]
    columns += [YARDSTICKS, "n", "unit", "imported from", REASON]
    own = _own_rows(history.series, [one.metric for one in history.series] if whole else named)
    rows = [row for series, companions in own for row in _series_rows(history, series, companions)]
    rows += [
        [lack.metric, lack.variant, "", "", str(lack.step), NOT_MEASURED, "", "", "", "", "", one_line(lack.message)]
        for lack in left_out
    ]
    if rows:
        same = len({row[1] for row in rows}) == 1
        drop = ("protocol", *(["variant"] if same else []), "n", "unit")
        optional = ("differs", YARDSTICKS, "imported from", REASON)
        print_table(columns, rows, optional, drop, below=(YARDSTICKS, REASON))
        explain_groups(columns, rows)
    else:
        say(f"run {history.run} has no values yet")
    _print_gaps(history)
    _print_omitted(history.series)


SHOWN_GAPS = 20
"""Rows about checkpoints without values; the highest steps come last, and of more gaps these stay."""


def _print_gaps(history: History) -> None:
    """Print the checkpoints that lack values which others have, and why."""
    gaps = sorted(history.gaps, key=lambda gap: gap.step)
    if gaps:
        columns = ["step without values", "variant", "suite", "evaluation", "why", "message"]
        rows = [
            [str(gap.step), gap.variant, gap.suite, str(gap.evaluation), gap.why, one_line(gap.message)]
            for gap in gaps[-SHOWN_GAPS:]
        ]
        print_table(columns, rows, drop=("variant",), below=("message",))
    if history.more_gaps or len(gaps) > SHOWN_GAPS:
        say("there are more steps without values: --from and --to, or --format json", err=True)


def _series_rows(history: History, series: ValueSeries, companions: Sequence[ValueSeries]) -> Iterator[list[str]]:
    """Yield the row of each value of a series."""
    head = [series.metric, series.variant, series.protocol, describe_fields(series.differs)]
    shown_next = _shown_next(series, companions)
    for (at, value, stderr, n, groups, origin), shown in zip(_values(series), shown_next, strict=True):
        source = _source(history.imports, origin) or ""
        numbers = [str(at), shown_number(value), error_bar(stderr), shown, shown_items(n, groups)]
        yield [*head, *numbers, series.unit, source, ""]


def _own_rows(
    found: Sequence[ValueSeries], named: Collection[str]
) -> Iterator[tuple[ValueSeries, Sequence[ValueSeries]]]:
    """Yield each series that has rows, with the series that are shown next to it."""
    divided = divide_rows([Place(series.metric, series.variant, series.protocol) for series in found], named)
    for place in divided.own:
        yield found[place], [found[at] for at in divided.companions.get(place, ())]


def _shown_next(series: ValueSeries, companions: Sequence[ValueSeries]) -> Iterator[str]:
    """Yield what is shown next to each value of a series: its companions at the same place, and chance."""
    by_place = [
        (companion_name(one.metric, series.metric), dict(zip(one.x, one.value, strict=True))) for one in companions
    ]
    for at in series.x:
        yield yardsticks([(name, values[at]) for name, values in by_place if at in values], series.baseline)


def print_buckets(buckets: Buckets) -> None:
    """Print the ranges that `--points` makes of a run's values, a row each."""
    columns = ["metric", "variant", "protocol", "differs", f"up to {buckets.x}", "last", "least", "most", "mean"]
    rows = [
        [
            series.metric,
            series.variant,
            series.protocol,
            describe_fields(series.differs),
            *map(shown_number, (str(at), last, least, most, mean)),
            f"{count:,}",
            series.unit,
        ]
        for series in buckets.series
        for at, last, least, most, mean, count in _ranges(series)
    ]
    same = len({row[1] for row in rows}) == 1
    drop = ("protocol", *(["variant"] if same else []), "unit", "mean")
    print_table([*columns, "values", "unit"], rows, optional=("differs",), drop=drop)


def write_buckets_csv(buckets: Buckets) -> None:
    """Print the ranges that `--points` makes of a run's values as CSV, a line each."""
    write_rows(
        [
            {
                "metric": series.metric,
                "variant": series.variant,
                "protocol": series.protocol,
                "differs": describe_fields(series.differs),
                buckets.x: at,
                "last": last,
                "min": least,
                "max": most,
                "mean": mean,
                "count": count,
                "unit": series.unit,
                "direction": series.direction,
            }
            for series in buckets.series
            for at, last, least, most, mean, count in _ranges(series)
        ]
    )


def _ranges(
    series: BucketSeries,
) -> Iterator[tuple[int, float | Word, float | None, float | None, float | None, int]]:
    """Yield the last place, the last value, the least, the largest and the mean value, and the number of values."""
    return zip(series.x, series.last, series.min, series.max, series.mean, series.count, strict=True)


def print_curves(joined: JoinedHistories) -> None:
    """Print several runs: a table per curve, with a row per step and a column per series."""
    for curve in joined.curves:
        chances = {series.baseline for series in curve.series}
        say_curve(curve, chances.pop() if len(chances) == 1 else None)
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
