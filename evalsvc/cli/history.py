"""`evalsvc history`: the values of runs by training step, as tables and as rows of CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from evalsvc.cli.options import (
    FirstStep,
    Form,
    LastStep,
    OfVariant,
    Output,
    Url,
    complete_metric,
    complete_run,
    connect,
    refuse,
    require_folders,
)
from evalsvc.cli.printer import (
    YARDSTICKS,
    Row,
    about_curve,
    error_bar,
    explain_groups,
    print_list,
    print_rows,
    printed_to,
    show,
    shown_items,
    shown_number,
)
from evalsvc.cli.terminal import fitting, one_line, print_lines, print_table, say, table_lines
from evalsvc.client.history import COLUMNS
from evalsvc.compare.curves import (
    Curve,
    JoinedHistories,
    RunSeries,
    Tradeoff,
    TradeoffPoint,
    join_histories,
    origins,
    require_comparable,
    tabulate,
)
from evalsvc.errors import InvalidRequest
from evalsvc.metrics.definitions import main_metric
from evalsvc.metrics.shown_metrics import Place, companion_name, divide_rows, yardsticks
from evalsvc.spec.documents import Headline
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import Axis, Buckets, History, ImportSource, LeftOutMetric, SeriesHead, ValueSeries
from evalsvc.spec.protocol import describe_fields, labelled

commands = typer.Typer()


@commands.command()
def history(
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN", help="Name of the training run; several runs share each curve.", autocompletion=complete_run
        ),
    ],
    metric: Annotated[
        list[str] | None,
        Option(
            "--metric",
            help="Show only this metric, <task>/<metric>, or metrics that match a pattern; repeat for several.",
            show_default="the headline",
            autocompletion=complete_metric,
        ),
    ] = None,
    everything: Annotated[
        bool, Option("--all", help="Show every metric and step; perplexities and other companions get rows.")
    ] = False,
    newest: Annotated[bool, Option("--newest", help="Show only the newest and the best value of each metric.")] = False,
    variant: OfVariant = None,
    x: Annotated[Axis, Option("--x", help="Axis: training steps or tokens.")] = "step",
    first: FirstStep = None,
    until: LastStep = None,
    last: Annotated[
        int | None,
        Option(min=1, help="Show only this number of highest steps.", show_default="those that fit the screen"),
    ] = None,
    points: Annotated[
        int | None,
        Option(
            min=1,
            max=10_000,
            help="Show at most this number of ranges of steps, each with its last, least, largest and mean value.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        Option(help="Show a row per checkpoint, with this metric first and the others next to it.", show_default="no"),
    ] = None,
    force: Annotated[
        bool, Option("--force", help="With several runs, also show values of different protocols.")
    ] = False,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the metrics of a run by training step, or those of several runs next to each other.

    The table is one screen: the newest values of the headline of the run's suites, or of six metrics if no suite names
    a headline. Perplexities, unigram losses and chance are shown next to their metric. `--metric` shows every step of a
    metric, and `--all` every metric. CSV and JSON always have every metric and step.

    Values of different protocols never share a curve. For one run, they are shown separately, with the fields that
    differ. For several runs, they are left out with the fields that differ, and the exit code is 2, unless --force is
    given.
    """
    require_folders({"--output": output})
    names = list(dict.fromkeys(runs))
    metrics = metric or []
    if points is not None and (len(names) > 1 or against is not None or last is not None):
        given = "several runs, --against or --last is given"
        raise InvalidRequest(f"--points shows one run, and {given}; leave the others out")
    steps = {"first": first, "last": until}
    fits_screen = not (metrics or everything or last) and first is None and until is None
    shown = Shown(metrics, everything, fits_screen)
    with connect(url) as client:
        if newest:
            refuse({"--points": points, "--against": against, "--last": last}, "with --newest")
        headlines = [client.headline(run) for run in names] if form == "table" else []
        choice = _choose(headlines, metrics, everything, against)
        is_alone = len(names) == 1 and against is None
        joined = None
        if points is not None:
            buckets = client.buckets(names[0], choice.names, points=points, variant=variant, x=x, **steps)
            with printed_to(output):
                show(buckets, form, print_buckets, bucket_rows)
        elif newest:
            with printed_to(output):
                for run in names:
                    if form == "table":
                        say(f"run {run}")
                    columns = ("metric", "variant", "unit", "latest", "latest at", "best", "best at", "best of")
                    series = client.summary(run, _of_run(run, choice.names, headlines, metrics), variant=variant)
                    print_list(series, columns, form, "series", f"run {run} has no values yet")
        else:
            wanted = [*choice.names, *(choice.companions if is_alone else ())]
            histories = []
            for run in names:
                of_run = _of_run(run, wanted, headlines, metrics)
                if wanted and not of_run:  # without any name, the service would return every metric
                    histories.append(History(run=run, x=x, series=[], names=[], imports={}, next_cursor=None))
                    continue
                read = client.history(run, of_run, variant=variant, x=x, **steps)
                places = {} if metrics else {name: place for place, name in enumerate(of_run)}
                in_order = sorted(read.series, key=lambda series: places.get(series.metric, 0))
                histories.append(last_steps(read.model_copy(update={"series": in_order}), last))
            joined = None if is_alone else join_histories(histories, client.protocol, force)
            with printed_to(output):
                if joined is None:
                    left_out = [
                        lack
                        for headline in headlines
                        for lack in headline.left_out
                        if variant in (None, lack.variant)
                        and (not metrics or any(fnmatchcase(lack.metric, name) for name in metrics))
                    ]
                    show(histories[0], form, partial(print_history, shown=shown, left_out=left_out), history_rows)
                elif against is None:
                    show(joined, form, partial(print_curves, shown=shown), curve_rows)
                else:
                    show(tabulate(joined, against), form, print_tradeoff, tradeoff_rows)
    if choice.hidden:
        say(
            f"{choice.hidden:,} more {'metric is' if choice.hidden == 1 else 'metrics are'} not in the headline; "
            "--all shows every metric",
            err=True,
        )
    if joined is not None:
        require_comparable(joined)


@dataclass(frozen=True)
class Choice:
    names: Sequence[str] = ()
    """Names and patterns of the metrics that have rows or columns; empty: all metrics."""
    companions: Sequence[str] = ()
    hidden: int = 0


def _choose(headlines: Sequence[Headline], metrics: Sequence[str], everything: bool, against: str | None) -> Choice:
    firsts = list(dict.fromkeys(name for headline in headlines for name in headline.metrics))
    if not metrics and (everything or not firsts):
        return Choice()
    known = dict.fromkeys(metric.name for headline in headlines for metric in headline.names)
    wanted = list(dict.fromkeys([*(metrics or firsts), *([] if against is None else [against])]))
    shown = [name for name in known if any(name == pattern or fnmatchcase(name, pattern) for pattern in wanted)]
    companions = [name for name in known if name not in shown and main_metric(name, known) in shown]
    return Choice(wanted, companions, 0 if metrics else len(known) - len(shown) - len(companions))


def _of_run(run: str, names: Sequence[str], headlines: Sequence[Headline], metrics: Sequence[str]) -> list[str]:
    known = {item.name for headline in headlines if headline.run == run for item in headline.names}
    return [name for name in names if metrics or not headlines or name in known]


REASON = "why there is no value"

SHOWN_GAPS = 20
"""Most rows about checkpoints without values; if more checkpoints lack values, the highest steps are shown."""


@dataclass(frozen=True)
class Shown:
    named: Collection[str] = ()
    """Metrics that have rows even if they are companions of others."""
    whole: bool = False
    fits_screen: bool = False


def last_steps(history: History, count: int | None) -> History:
    """Return a history with only the `count` highest steps of all its series together; all steps if None."""
    if count is None:
        return history
    places = sorted({at for series in history.series for at in series.x})[-count:]
    cut = []
    for series in history.series if places else ():
        start = next((place for place, at in enumerate(series.x) if at >= places[0]), len(series.x))
        columns = {name: value[start:] for name in COLUMNS if (value := getattr(series, name)) is not None}
        cut.append(series.model_copy(update=columns))
    gaps = [gap for gap in history.gaps if history.x != "step" or not places or gap.step >= places[0]]
    return history.model_copy(update={"series": [series for series in cut if series.x], "gaps": gaps})


def print_history(history: History, *, shown: Shown, left_out: Sequence[LeftOutMetric] = ()) -> None:
    """Print a block for each metric of a run, with companions, sources of imports, and reasons of missing values."""
    columns = [history.x, "value", "± stderr", YARDSTICKS, "n", "imported from", REASON]

    def table_of(history: History) -> tuple[list[list[str]], list[Text]]:
        named = [series.metric for series in history.series] if shown.whole else shown.named
        divided = divide_rows([Place(item.metric, item.variant, item.protocol) for item in history.series], named)
        rows: list[list[str]] = []
        above: dict[int, str] = {}
        for place in divided.shown:
            series, companions = history.series[place], [history.series[at] for at in divided.companions.get(place, ())]
            fixed = [item for item in companions if len(item.value) > 1 and len(set(item.value)) == 1]
            near = [(companion_name(item.metric, series.metric), item.value[0]) for item in fixed]
            above[len(rows)] = about_curve(series, yardsticks(near, series.baseline))
            rows += _value_rows(history, series, [item for item in companions if item not in fixed])
        for lack in left_out:
            above[len(rows)] = " ".join([lack.metric, *([lack.variant] if lack.variant != "raw" else [])])
            rows.append([str(lack.step), "not measured", *[""] * 4, one_line(lack.message)])
        return rows, table_lines(columns, rows, columns[2:], ("n",), (YARDSTICKS, REASON), above=above)

    kept = steps = len({at for series in history.series for at in series.x})

    if shown.fits_screen:
        kept = fitting(steps, lambda count: len(table_of(last_steps(history, count))[1]))
    part = last_steps(history, kept) if kept < steps else history
    rows, lines = table_of(part)
    if rows:
        print_lines([Text(), *lines, Text()])
        explain_groups(columns, rows)
    else:
        say(f"run {history.run} has no values yet; evalsvc evaluations {history.run} shows its evaluations")
    _say_cut(kept, steps, history.x)
    gaps = sorted(part.gaps, key=lambda gap: gap.step)
    if gaps:
        rows = [
            [str(gap.step), gap.variant, gap.suite, str(gap.evaluation), gap.why, one_line(gap.message)]
            for gap in gaps[-SHOWN_GAPS:]
        ]
        columns = ["step without values", "variant", "suite", "evaluation", "why", "message"]
        print_table(columns, rows, drop=("variant",), below=("message",))
    if part.more_gaps or len(gaps) > SHOWN_GAPS:
        say("more steps have no values; select steps by --from and --to, or give --format json", err=True)
    _print_omitted(history.series)


def _say_cut(kept: int, steps: int, x: Axis) -> None:
    if kept < steps:
        places = "steps" if x == "step" else "places on the axis"
        say(f"the last {kept:,} of {steps:,} {places} are shown; --all and --metric NAME show all", err=True)


def _value_rows(history: History, series: ValueSeries, companions: Sequence[ValueSeries]) -> Iterator[list[str]]:
    by_step = [
        (companion_name(companion.metric, series.metric), dict(zip(companion.x, companion.value, strict=True)))
        for companion in companions
    ]
    groups = series.groups or [None] * len(series.x)
    columns = zip(series.x, series.value, series.stderr, series.n, groups, origins(series), strict=True)
    for at, value, stderr, n, of_groups, origin in columns:
        near = yardsticks([(name, values[at]) for name, values in by_step if at in values], None)
        numbers = [str(at), shown_number(value), error_bar(stderr), near, shown_items(n, of_groups)]
        yield [*numbers, _source(history.imports, origin) or "", ""]


def print_buckets(buckets: Buckets) -> None:
    rows = [{name: value for name, value in row.items() if name != "direction"} for row in bucket_rows(buckets)]
    drop = ("protocol", *(["variant"] if len({row["variant"] for row in rows}) == 1 else []), "unit", "mean")
    print_rows(rows, "table", "", f"run {buckets.run} has no values yet", drop)


def bucket_rows(buckets: Buckets) -> list[Row]:
    """Return a row for each range of steps, whose last step is its place on the axis."""
    return [
        {
            **_head(series),
            buckets.x: at,
            **{name: getattr(series, name)[place] for name in ("last", "min", "max", "mean", "count")},
            "unit": series.unit,
            "direction": series.direction,
        }
        for series in buckets.series
        for place, at in enumerate(series.x)
    ]


def print_curves(joined: JoinedHistories, *, shown: Shown) -> None:
    """Print a table for each curve, with a column per series; curves that share a screen are one table."""
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
            say(about_curve(curve, yardsticks([], chances.pop() if len(chances) == 1 else None)))
            labels = [_label(curve, series) for series in curve.series]
            kept = fitting(steps, lambda count: count) if shown.fits_screen else steps
            print_table([joined.x, *labels], [row[1:] for row in _curve_rows(curve, labels, kept)])
            _say_cut(kept, steps, joined.x)
    _print_omitted([series for curve in joined.curves for series in curve.series])
    if not joined.curves and not joined.refused:
        say(f"runs {', '.join(joined.runs)} have no values yet")


def _label(curve: Curve, series: RunSeries) -> str:
    variant = series.variant if series.variant != "raw" else ""
    differs = describe_fields(series.differs) if curve.protocol is None else ""
    return " ".join(filter(None, [series.run, variant, differs]))


def _curve_rows(curve: Curve, labels: Sequence[str], kept: int) -> list[list[str]]:
    cells: dict[int, dict[str, str]] = {}
    for series in curve.series:
        for at, value, stderr, origin in zip(series.x, series.value, series.stderr, origins(series), strict=True):
            cells.setdefault(at, {})[_label(curve, series)] = _cell(value, stderr, origin)
    name = labelled(curve.metric, curve.differs) + (f" ({curve.unit})" if curve.unit else "")
    return [[name, str(at), *(cells[at].get(label, "") for label in labels)] for at in sorted(cells)[-kept:]]


def print_tradeoff(tradeoff: Tradeoff) -> None:
    keys, metrics = ["run", "variant", tradeoff.x], [tradeoff.against, *tradeoff.columns]
    rows = []
    for row in tradeoff.rows:
        cells = [_cell(point.value, point.stderr, point.import_) if point else "" for point in _points(row, metrics)]
        rows.append([*(str(row[key]) for key in keys), *cells])
    print_table([*keys, *metrics], rows)


def _points(row: Mapping[str, object], metrics: Sequence[str]) -> list[TradeoffPoint | None]:
    return [None if row[metric] is None else TradeoffPoint.model_validate(row[metric]) for metric in metrics]


def tradeoff_rows(tradeoff: Tradeoff) -> list[Row]:
    rows: list[Row] = []
    for row in tradeoff.rows:
        plain = {key: row[key] for key in ("run", "variant", tradeoff.x)}
        metrics = [tradeoff.against, *tradeoff.columns]
        for metric, point in zip(metrics, _points(row, metrics), strict=True):
            plain |= {metric: point and point.value}
            plain |= {f"{metric} {name}": point and getattr(point, name) for name in ("stderr", "low", "high")}
            plain |= {f"{metric} source": point and _source(tradeoff.imports[str(row["run"])], point.import_)}
        rows.append(plain)
    return rows


def history_rows(history: History) -> list[Row]:
    return [row for series in history.series for row in _series_rows(series, history.x, history.imports)]


def curve_rows(joined: JoinedHistories) -> list[Row]:
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


def _cell(value: float | Word, stderr: float | None, origin: int | None) -> str:
    return " ".join(filter(None, [shown_number(value), error_bar(stderr), "" if origin is None else "(imported)"]))


def _source(imports: Mapping[str, ImportSource], origin: int | None) -> str | None:
    return None if origin is None else imports[str(origin)].source


def _print_omitted(series: Sequence[ValueSeries]) -> None:
    if omitted := sum(item.omitted for item in series):
        say(f"{omitted} values of checkpoints that were posted without tokens_seen are not shown")
