"""Histories of runs, as tables and as rows of CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evalsvc.cli.printer import Row, print_rows
from evalsvc.cli.tables import YARDSTICKS, error_bar, explain_groups, say_curve, shown_items, shown_number
from evalsvc.cli.terminal import fitting, one_line, print_table, say, table_lines
from evalsvc.compare.curves import Curve, JoinedHistories, RunSeries, Tradeoff, TradeoffPoint, origins
from evalsvc.metrics.shown_metrics import Place, companion_name, divide_rows, yardsticks
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import Axis, Buckets, History, ImportSource, LeftOutMetric, SeriesHead, ValueSeries
from evalsvc.spec.protocol import describe_fields, labelled

NOT_MEASURED = "not measured"
"""Cell in place of a value that an evaluation could not measure."""

REASON = "why there is no value"

SHOWN_GAPS = 20
"""Most rows about checkpoints without values; if more checkpoints lack values, the highest steps are shown."""


@dataclass(frozen=True)
class Shown:
    """Part of a history that a table shows."""

    named: Collection[str] = ()
    """Metrics that have rows even if they are companions of others."""
    whole: bool = False
    """Whether all companions have rows."""
    fits_screen: bool = False
    """Whether the table is one screen, with the newest values."""


def last_steps(history: History, count: int | None) -> History:
    """Return a history with only the `count` highest steps of all its series together; all steps if None."""
    if count is None:
        return history
    places = sorted({at for series in history.series for at in series.x})[-count:]
    cut = []
    for series in history.series if places else ():
        start = next((place for place, at in enumerate(series.x) if at >= places[0]), len(series.x))
        columns = {
            name: value[start:]
            for name in ("x", "value", "stderr", "low", "high", "n", "groups", "import_")
            if (value := getattr(series, name)) is not None
        }
        cut.append(series.model_copy(update=columns))
    gaps = [gap for gap in history.gaps if history.x != "step" or not places or gap.step >= places[0]]
    return history.model_copy(update={"series": [series for series in cut if series.x], "gaps": gaps})


def print_history(history: History, *, shown: Shown, left_out: Sequence[LeftOutMetric] = ()) -> None:
    """Print a row for each value of a run, with the source of imported values and the reasons of missing values.

    Perplexities and other companions are shown next to their metric.
    """
    columns = ["metric", "variant", "protocol", "differs", history.x, "value", "± stderr"]
    columns += [YARDSTICKS, "n", "unit", "imported from", REASON]
    unmeasured = [
        [lack.metric, lack.variant, "", "", str(lack.step), NOT_MEASURED, "", "", "", "", "", one_line(lack.message)]
        for lack in left_out
    ]

    def rows_of(history: History) -> list[list[str]]:
        named = [series.metric for series in history.series] if shown.whole else shown.named
        divided = divide_rows([Place(item.metric, item.variant, item.protocol) for item in history.series], named)
        rows: list[list[str]] = []
        for place in divided.shown:
            companions = [history.series[at] for at in divided.companions.get(place, ())]
            rows += _value_rows(history, history.series[place], companions)
        return [*rows, *unmeasured]

    rows = rows_of(history)
    same = len({row[1] for row in rows}) == 1
    drop = ("protocol", *(["variant"] if same else []), "n", "unit")
    optional = ("differs", YARDSTICKS, "imported from", REASON)
    below = (YARDSTICKS, REASON)
    kept = steps = len({at for series in history.series for at in series.x})
    if shown.fits_screen:
        kept = fitting(
            steps, lambda count: len(table_lines(columns, rows_of(last_steps(history, count)), optional, drop, below))
        )
    part = last_steps(history, kept) if kept < steps else history
    rows = rows_of(part)
    if rows:
        print_table(columns, rows, optional, drop, below)
        explain_groups(columns, rows)
    else:
        say(f"run {history.run} has no values yet; evalsvc evaluations {history.run} shows its evaluations")
    _say_cut(kept, steps, history.x)
    _print_gaps(part)
    _print_omitted(history.series)


def _say_cut(kept: int, steps: int, x: Axis) -> None:
    if kept < steps:
        places = "steps" if x == "step" else "places on the axis"
        say(f"the last {kept:,} of {steps:,} {places} are shown; --all and --metric NAME show all", err=True)


def _print_gaps(history: History) -> None:
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


def _value_rows(history: History, series: ValueSeries, companions: Sequence[ValueSeries]) -> Iterator[list[str]]:
    head = [series.metric, series.variant, series.protocol, describe_fields(series.differs)]
    by_step = [
        (companion_name(companion.metric, series.metric), dict(zip(companion.x, companion.value, strict=True)))
        for companion in companions
    ]
    groups = series.groups or [None] * len(series.x)
    columns = zip(series.x, series.value, series.stderr, series.n, groups, origins(series), strict=True)
    for at, value, stderr, n, of_groups, origin in columns:
        near = yardsticks([(name, values[at]) for name, values in by_step if at in values], series.baseline)
        numbers = [str(at), shown_number(value), error_bar(stderr), near, shown_items(n, of_groups)]
        yield [*head, *numbers, series.unit, _source(history.imports, origin) or "", ""]


def print_buckets(buckets: Buckets) -> None:
    """Print a row for each range of steps that `--points` makes."""
    rows = [{name: value for name, value in row.items() if name != "direction"} for row in bucket_rows(buckets)]
    same = len({row["variant"] for row in rows}) == 1
    drop = ("protocol", *(["variant"] if same else []), "unit", "mean")
    print_rows(rows, "table", "", f"run {buckets.run} has no values yet", drop)


def bucket_rows(buckets: Buckets) -> list[Row]:
    """Return a row for each range of steps, whose last step is its place on the axis."""
    return [
        {
            **_head(series),
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
        for at, last, least, most, mean, count in zip(
            series.x, series.last, series.min, series.max, series.mean, series.count, strict=True
        )
    ]


def print_curves(joined: JoinedHistories, *, shown: Shown) -> None:
    """Print several runs: a table for each curve, with a row per step and a column per series.

    Curves that share a screen are one table, with the newest steps of each.
    """
    steps = len({at for curve in joined.curves for series in curve.series for at in series.x})
    if shown.fits_screen and len(joined.curves) > 1:
        labels = list(dict.fromkeys(_label(curve, series) for curve in joined.curves for series in curve.series))
        columns = ["metric", joined.x, *labels]

        def newest(kept: int) -> list[list[str]]:
            return [row for curve in joined.curves for row in _curve_rows(curve, labels, kept)]

        kept = fitting(steps, lambda count: len(table_lines(columns, newest(count))))
        print_table(columns, newest(kept))
        _say_cut(kept, steps, joined.x)
    else:
        for curve in joined.curves:
            chances = {series.baseline for series in curve.series}
            say_curve(curve, chances.pop() if len(chances) == 1 else None)
            labels = [_label(curve, series) for series in curve.series]
            kept = fitting(steps, lambda count: count) if shown.fits_screen else steps
            print_table([joined.x, *labels], [row[1:] for row in _curve_rows(curve, labels, kept)])
            _say_cut(kept, steps, joined.x)
    _print_omitted([series for curve in joined.curves for series in curve.series])
    if not joined.curves and not joined.refused:
        say(f"runs {', '.join(joined.runs)} have no values yet")


def _label(curve: Curve, series: RunSeries) -> str:
    variant = series.variant if series.variant != "raw" else ""
    return " ".join(
        filter(None, [series.run, variant, describe_fields(series.differs) if curve.protocol is None else ""])
    )


def _curve_rows(curve: Curve, labels: Sequence[str], kept: int) -> list[list[str]]:
    cells: dict[int, dict[str, str]] = {}
    for series in curve.series:
        columns = zip(series.x, series.value, series.stderr, origins(series), strict=True)
        for at, value, stderr, origin in columns:
            cells.setdefault(at, {})[_label(curve, series)] = _cell(value, stderr, origin)
    name = labelled(curve.metric, curve.differs) + (f" ({curve.unit})" if curve.unit else "")
    return [[name, str(at), *(cells[at].get(label, "") for label in labels)] for at in sorted(cells)[-kept:]]


def print_tradeoff(tradeoff: Tradeoff) -> None:
    """Print a row per checkpoint, with the metric of `--against` first."""
    keys, metrics = ["run", "variant", tradeoff.x], [tradeoff.against, *tradeoff.columns]
    rows = []
    for row in tradeoff.rows:
        points = [_point(row[metric]) for metric in metrics]
        cells = ["" if point is None else _cell(point.value, point.stderr, point.import_) for point in points]
        rows.append([*(str(row[key]) for key in keys), *cells])
    print_table([*keys, *metrics], rows)


def tradeoff_rows(tradeoff: Tradeoff) -> list[Row]:
    """Return a row per checkpoint, with columns for values, standard errors and ends of intervals."""
    rows: list[Row] = []
    for row in tradeoff.rows:
        plain = {key: row[key] for key in ("run", "variant", tradeoff.x)}
        for metric in (tradeoff.against, *tradeoff.columns):
            point = _point(row[metric])
            plain |= {metric: point and point.value}
            plain |= {f"{metric} {name}": point and getattr(point, name) for name in ("stderr", "low", "high")}
            plain |= {f"{metric} source": point and _source(tradeoff.imports[str(row["run"])], point.import_)}
        rows.append(plain)
    return rows


def history_rows(history: History) -> list[Row]:
    """Return a row for each value of a run."""
    return [row for series in history.series for row in _series_rows(series, history.x, history.imports)]


def curve_rows(joined: JoinedHistories) -> list[Row]:
    """Return a row for each value of several runs."""
    return [
        {"run": series.run, **row}
        for curve in joined.curves
        for series in curve.series
        for row in _series_rows(series, joined.x, joined.imports[series.run])
    ]


def _series_rows(series: ValueSeries, x: Axis, imports: Mapping[str, ImportSource]) -> Iterator[Row]:
    columns = {name: getattr(series, name) for name in ("value", "stderr", "low", "high", "n", "groups")}
    for place, (at, origin) in enumerate(zip(series.x, origins(series), strict=True)):
        yield {
            **_head(series),
            x: at,
            **{name: None if column is None else column[place] for name, column in columns.items()},
            "unit": series.unit,
            "direction": series.direction,
            "import": origin,
            "source": _source(imports, origin),
        }


def _head(series: SeriesHead) -> dict[str, object]:
    names = ("metric", "variant", "protocol")
    return {name: getattr(series, name) for name in names} | {"differs": describe_fields(series.differs)}


def _point(cell: object) -> TradeoffPoint | None:
    return None if cell is None else TradeoffPoint.model_validate(cell)


def _cell(value: float | Word, stderr: float | None, origin: int | None) -> str:
    return " ".join(filter(None, [shown_number(value), error_bar(stderr), "" if origin is None else "(imported)"]))


def _source(imports: Mapping[str, ImportSource], origin: int | None) -> str | None:
    return None if origin is None else imports[str(origin)].source


def _print_omitted(series: Sequence[ValueSeries]) -> None:
    if omitted := sum(item.omitted for item in series):
        say(f"{omitted} values of checkpoints that were posted without tokens_seen are not shown")
