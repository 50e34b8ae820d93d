"""`evalsvc history`: the values of runs by training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.history_tables import (
    Shown,
    bucket_rows,
    curve_rows,
    history_rows,
    last_steps,
    print_buckets,
    print_curves,
    print_history,
    print_tradeoff,
    tradeoff_rows,
)
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import (
    FirstStep,
    Form,
    Format,
    LastStep,
    OfVariant,
    Output,
    Url,
    connect,
    refuse,
    require_folders,
)
from evalsvc.cli.printer import print_list, printed_to, show
from evalsvc.cli.terminal import say
from evalsvc.client import Client
from evalsvc.compare.curves import join_histories, require_comparable, tabulate
from evalsvc.errors import InvalidRequest
from evalsvc.metrics.definitions import main_metric
from evalsvc.spec.documents import Headline, History
from evalsvc.spec.documents.history import Axis, LeftOutMetric, ValueSeries

commands = typer.Typer()

Metrics = Annotated[
    list[str] | None,
    Option(
        "--metric",
        help="Show only this metric, <task>/<metric>, or metrics that match a pattern; repeat for several.",
        show_default="the headline",
        autocompletion=complete_metric,
    ),
]


@commands.command()
def history(
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN", help="Name of the training run; several runs share each curve.", autocompletion=complete_run
        ),
    ],
    metric: Metrics = None,
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
        raise InvalidRequest(
            "--points shows one run, and several runs, --against or --last is given; leave the others out"
        )
    steps = {"first": first, "last": until}
    fits_screen = not (metrics or everything or last) and first is None and until is None
    shown = Shown(metrics, everything, fits_screen)
    with connect(url) as client:
        if newest:
            refuse({"--points": points, "--against": against, "--last": last}, "with --newest")
        headlines = [client.headline(run) for run in names] if form == "table" else []
        choice = _choose(headlines, metrics, everything, against)
        if points is not None:
            buckets = client.buckets(names[0], choice.names, points=points, variant=variant, x=x, **steps)
            with printed_to(output):
                show(buckets, form, print_buckets, bucket_rows)
            _say_hidden(choice)
            return
        is_alone = len(names) == 1 and against is None
        wanted = [*choice.names, *(choice.companions if is_alone else ())]
        if newest:
            with printed_to(output):
                for run in names:
                    _print_newest(client, run, _of_run(run, choice.names, headlines, metrics), variant, form)
            _say_hidden(choice)
            return
        histories = []
        for run in names:
            of_run = _of_run(run, wanted, headlines, metrics)
            if wanted and not of_run:  # without any name, the service would return every metric
                histories.append(History(run=run, x=x, series=[], names=[], imports={}, next_cursor=None))
                continue
            read = client.history(run, of_run, variant=variant, x=x, **steps)
            in_order = sorted(read.series, key=lambda series: 0 if metrics else _place(series, of_run))
            histories.append(last_steps(read.model_copy(update={"series": in_order}), last))
        joined = None if is_alone else join_histories(histories, client.protocol, force)
    with printed_to(output):
        if joined is None:
            left_out = _without_value(headlines, metrics, variant)
            show(histories[0], form, partial(print_history, shown=shown, left_out=left_out), history_rows)
        elif against is None:
            show(joined, form, partial(print_curves, shown=shown), curve_rows)
        else:
            show(tabulate(joined, against), form, print_tradeoff, tradeoff_rows)
    _say_hidden(choice)
    if joined is not None:
        require_comparable(joined)


@dataclass(frozen=True)
class Choice:
    """Metrics that a table shows."""

    names: Sequence[str] = ()
    """Names and patterns of the metrics that have rows or columns; empty: all metrics."""
    companions: Sequence[str] = ()
    """Perplexities and other companions, which are shown next to these metrics."""
    hidden: int = 0
    """Number of metrics of the runs that are not shown."""


def _choose(headlines: Sequence[Headline], metrics: Sequence[str], everything: bool, against: str | None) -> Choice:
    firsts = list(dict.fromkeys(name for headline in headlines for name in headline.metrics))
    if not metrics and (everything or not firsts):
        return Choice()
    known = dict.fromkeys(metric.name for headline in headlines for metric in headline.names)
    wanted = list(dict.fromkeys([*(metrics or firsts), *([] if against is None else [against])]))
    shown = [name for name in known if any(name == pattern or fnmatchcase(name, pattern) for pattern in wanted)]
    companions = [name for name in known if name not in shown and main_metric(name, known) in shown]
    return Choice(wanted, companions, 0 if metrics else len(known) - len(shown) - len(companions))


def _place(series: ValueSeries, names: Sequence[str]) -> int:
    return names.index(series.metric) if series.metric in names else 0


def _without_value(headlines: Sequence[Headline], metrics: Sequence[str], variant: str | None) -> list[LeftOutMetric]:
    return [
        lack
        for headline in headlines
        for lack in headline.left_out
        if variant in (None, lack.variant) and (not metrics or any(fnmatchcase(lack.metric, name) for name in metrics))
    ]


def _of_run(run: str, names: Sequence[str], headlines: Sequence[Headline], metrics: Sequence[str]) -> list[str]:
    """Return the names of a headline that the run has; what the user named stays as it is."""
    known = {item.name for headline in headlines if headline.run == run for item in headline.names}
    return [name for name in names if metrics or not headlines or name in known]


def _print_newest(client: Client, run: str, metrics: Sequence[str], variant: str | None, form: Format) -> None:
    if form == "table":
        say(f"run {run}")
    columns = ("metric", "variant", "unit", "latest", "latest at", "best", "best at", "best of")
    series = client.summary(run, metrics, variant=variant)
    print_list(series, columns, form, "series", f"run {run} has no values yet")


def _say_hidden(choice: Choice) -> None:
    if choice.hidden:
        metrics = "metric is" if choice.hidden == 1 else "metrics are"
        say(f"{choice.hidden:,} more {metrics} not in the headline; --all shows every metric", err=True)
