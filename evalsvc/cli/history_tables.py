"""Histories of runs, printed as tables and as CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from evalsvc.cli.tables import YARDSTICKS, error_bar, explain_groups, say_curve, shown_items, shown_number
from evalsvc.cli.terminal import one_line, print_table, say, write_rows
from evalsvc.compare.curves import JoinedHistories, RunSeries, Tradeoff, TradeoffPoint, origins
from evalsvc.metrics.shown_metrics import Place, companion_name, divide_rows, yardsticks
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
"""Cell in place of a value that an evaluation could not measure."""

REASON = "why there is no value"


def print_history(
    history: History, *, named: Collection[str] = (), left_out: Sequence[LeftOutMetric] = (), whole: bool = False
) -> None:
    """Print a row for each value of a run, with the source of imported values and the reasons of missing values.

    Perplexities and other companions are shown next to their metric. Companions in `named` have rows; with `whole`,
    all companions have rows.
    """
    columns = ["metric", "variant", "protocol", "differs", history.x, "value", "± stderr"]
    columns += [YARDSTICKS, "n", "unit", "imported from", REASON]
    with_rows = _series_with_rows(history.series, [series.metric for series in history.series] if whole else named)
    rows = [row for series, companions in with_rows for row in _series_rows(history, series, companions)]
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
        say(f"run {history.run} has no values yet; evalsvc evaluations list {history.run} shows its evaluations")
    _print_gaps(history)
    _print_omitted(history.series)


SHOWN_GAPS = 20
"""Most rows about checkpoints without values; if more checkpoints lack values, the highest steps are shown."""


def _print_gaps(history: History) -> None:
    """Print the checkpoints that lack values, with the reasons."""
    gaps = sorted(history.gaps, key=lambda gap: gap.step)
    if gaps:
        columns = ["step without values", "variant", "suite", "evaluation", "why", "message"]
        rows = [
            [str(gap.step), gap.variant, gap.suite, str(gap.evaluation), gap.why, one_line(gap.message)]
            for gap in gaps[-SHOWN_GAPS:]
        ]
        print_table(columns, rows, drop=("variant",), below=("message",))
    if history.more_gaps or len(gaps) > SHOWN_GAPS:
        say("more steps have no values; select steps by --from and --to, or give --format json", err=True)


def _series_rows(history: History, series: ValueSeries, companions: Sequence[ValueSeries]) -> Iterator[list[str]]:
    """Yield a row for each value of a series."""
    head = [series.metric, series.variant, series.protocol, describe_fields(series.differs)]
    shown_next = _shown_next(series, companions)
    for (at, value, stderr, _, _, n, groups, origin), shown in zip(_values(series), shown_next, strict=True):
        source = _source(history.imports, origin) or ""
        numbers = [str(at), shown_number(value), error_bar(stderr), shown, shown_items(n, groups)]
        yield [*head, *numbers, series.unit, source, ""]


def _series_with_rows(
    every: Sequence[ValueSeries], named: Collection[str]
) -> Iterator[tuple[ValueSeries, Sequence[ValueSeries]]]:
    """Yield each series that has rows, with the series that are shown next to it."""
    divided = divide_rows([Place(series.metric, series.variant, series.protocol) for series in every], named)
    for place in divided.shown:
        yield every[place], [every[at] for at in divided.companions.get(place, ())]


def _shown_next(series: ValueSeries, companions: Sequence[ValueSeries]) -> Iterator[str]:
    """Yield the text next to each value of a series: companions at the same step, and chance."""
    by_place = [
        (companion_name(companion.metric, series.metric), dict(zip(companion.x, companion.value, strict=True)))
        for companion in companions
    ]
    for at in series.x:
        yield yardsticks([(name, values[at]) for name, values in by_place if at in values], series.baseline)


def print_buckets(buckets: Buckets) -> None:
    """Print a row for each range of steps that `--points` makes."""
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
    """Print a line of CSV for each range of steps that `--points` makes."""
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
    """Yield the last step, the last, least, largest and mean value, and the number of values of each range."""
    return zip(series.x, series.last, series.min, series.max, series.mean, series.count, strict=True)


def print_curves(joined: JoinedHistories) -> None:
    """Print several runs: a table for each curve, with a row per step and a column per series."""
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
    """Print a row per checkpoint, with the metric of `--against` first."""
    keys, metrics = ["run", "variant", tradeoff.x], [tradeoff.against, *tradeoff.columns]
    rows = [
        [*(str(row[key]) for key in keys), *(_shown_point(_point(row[metric])) for metric in metrics)]
        for row in tradeoff.rows
    ]
    print_table([*keys, *metrics], rows)


def write_history_csv(history: History) -> None:
    """Print a history as CSV, a line per value."""
    write_rows([row for series in history.series for row in _csv_rows(series, history.x, history.imports)])


def write_curves_csv(joined: JoinedHistories) -> None:
    """Print the histories of several runs as CSV, a line per value."""
    every = [series for curve in joined.curves for series in curve.series]
    rows = [(series.run, row) for series in every for row in _csv_rows(series, joined.x, joined.imports[series.run])]
    write_rows([{"run": run, **row} for run, row in rows])


def _csv_rows(series: ValueSeries, x: Axis, imports: Mapping[str, ImportSource]) -> Iterator[dict[str, object]]:
    for at, value, stderr, low, high, n, groups, origin in _values(series):
        yield {
            "metric": series.metric,
            "variant": series.variant,
            "protocol": series.protocol,
            "differs": describe_fields(series.differs),
            x: at,
            "value": value,
            "stderr": stderr,
            "low": low,
            "high": high,
            "n": n,
            "groups": groups,
            "unit": series.unit,
            "direction": series.direction,
            "import": origin,
            "source": _source(imports, origin),
        }


_Value = tuple[int, float | Word, float | None, float | None, float | None, int | None, int | None, int | None]


def _values(series: ValueSeries) -> Iterator[_Value]:
    """Yield the step, value, standard error, ends of the interval, n, groups and import id of each value."""
    errors = series.stderr, series.low, series.high, series.n, series.groups or [None] * len(series.x)
    return zip(series.x, series.value, *errors, origins(series), strict=True)


def write_tradeoff_csv(tradeoff: Tradeoff) -> None:
    """Print a line of CSV per checkpoint, with columns for values, standard errors and ends of intervals."""
    rows = []
    for row in tradeoff.rows:
        plain = {key: row[key] for key in ("run", "variant", tradeoff.x)}
        for metric in (tradeoff.against, *tradeoff.columns):
            point = _point(row[metric])
            plain |= {metric: point and point.value, f"{metric} stderr": point and point.stderr}
            plain |= {f"{metric} low": point and point.low, f"{metric} high": point and point.high}
            plain |= {f"{metric} source": point and _source(tradeoff.imports[str(row["run"])], point.import_)}
        rows.append(plain)
    write_rows(rows)


def _point(cell: object) -> TradeoffPoint | None:
    return None if cell is None else read(TradeoffPoint, cell)


def _shown_point(point: TradeoffPoint | None) -> str:
    return "" if point is None else _cell(point.value, point.stderr, point.import_)


def _cell(value: float | Word, stderr: float | None, origin: int | None) -> str:
    """Return a value with its error; imported values are marked."""
    return " ".join(filter(None, [shown_number(value), error_bar(stderr), "" if origin is None else "(imported)"]))


def _source(imports: Mapping[str, ImportSource], origin: int | None) -> str | None:
    """Return the source of an imported value; None for a measured value."""
    return None if origin is None else imports[str(origin)].source


def _print_omitted(series: Sequence[ValueSeries]) -> None:
    if omitted := sum(item.omitted for item in series):
        say(f"{omitted} values of checkpoints that were posted without tokens_seen are not shown")


def _series_label(series: RunSeries, has_protocols: bool) -> str:
    variant = series.variant if series.variant != "raw" else ""
    return " ".join(filter(None, [series.run, variant, describe_fields(series.differs) if has_protocols else ""]))


def _cells(series: RunSeries) -> dict[int, str]:
    columns = zip(series.x, series.value, series.stderr, origins(series), strict=True)
    return {at: _cell(value, stderr, origin) for at, value, stderr, origin in columns}
