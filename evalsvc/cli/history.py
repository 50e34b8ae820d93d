"""`evalsvc history` and `evalsvc import`: show the values of runs, and enter values of other tools."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.answers import printed_to
from evalsvc.cli.chosen_metrics import Asked, Choice, Steps
from evalsvc.cli.history_files import Defaults, read_series, requests
from evalsvc.cli.history_tables import (
    print_buckets,
    print_curves,
    print_history,
    print_tradeoff,
    write_buckets_csv,
    write_curves_csv,
    write_history_csv,
    write_tradeoff_csv,
)
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import FirstStep, Form, LastStep, Output, Url, connect, print_document, require_folders
from evalsvc.cli.terminal import say
from evalsvc.cli.wording import counted
from evalsvc.compare.curves import join_histories, require_comparable, tabulate
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.documents.history import Axis

commands = typer.Typer()


Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Show only this metric, <task>/<metric>, or metrics that match a pattern; repeat for several.",
        show_default="the headline",
        autocompletion=complete_metric,
    ),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Show every metric; perplexities and other companions get rows.")
]
Last = Annotated[int | None, typer.Option(min=1, help="Show only this number of highest steps.", show_default="all")]
Points = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        help="Show at most this number of ranges of steps, each with its last, least, largest and mean value.",
    ),
]


@commands.command()
def history(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Name of the training run; several runs share each curve.",
            autocompletion=complete_run,
        ),
    ],
    metric: Metrics = None,
    everything: Everything = False,
    variant: Annotated[
        str | None, typer.Option(help="Show only this variant of the weights.", show_default="all")
    ] = None,
    x: Annotated[Axis, typer.Option("--x", help="Axis: training steps or tokens.")] = "step",
    first: FirstStep = None,
    until: LastStep = None,
    last: Last = None,
    points: Points = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Show a row per checkpoint, with this metric first and the others next to it.", show_default="no"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With several runs, also show values of different protocols.")
    ] = False,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the metrics of a run by training step, or those of several runs next to each other.

    The table shows the headline of the suites of the run, or six metrics if no suite names a headline. Perplexities,
    unigram losses and chance are shown next to their metric. `--all` shows every metric. CSV and JSON always have every
    metric.

    Values of different protocols never share a curve. For one run, they are shown separately, with the fields that
    differ. For several runs, they are left out with the fields that differ, and the exit code is 2, unless --force is
    given.
    """
    require_folders({"--output": output})
    names = tuple(dict.fromkeys(runs))
    asked = Asked(names, tuple(metric or ()), everything, against, variant, x, Steps(first, until, last), form)
    if points is not None:
        _print_points(asked, points, output, url)
        return
    with connect(url) as client:
        headlines = [client.headline(run) for run in names] if form == "table" else []
        choice = asked.choose(headlines)
        histories = asked.read(client, choice, headlines)
        if against is None and len(names) == 1:
            left_out = asked.without_value(headlines)
            table = partial(print_history, named=asked.metrics, left_out=left_out, whole=everything)
            with printed_to(output):
                print_document(form, histories[0], table, write_history_csv)
            _say_hidden(choice)
            return
        joined = join_histories(histories, client.protocol, force)
    with printed_to(output):
        if against is None:
            print_document(form, joined, print_curves, write_curves_csv)
        else:
            print_document(form, tabulate(joined, against), print_tradeoff, write_tradeoff_csv)
    _say_hidden(choice)
    require_comparable(joined)


def _print_points(asked: Asked, points: int, output: Path | None, url: str | None) -> None:
    """Print a run in ranges of steps."""
    if len(asked.runs) > 1 or asked.against is not None or asked.steps.last is not None:
        raise InvalidRequest(
            "--points shows one run, and several runs, --against or --last is given; leave the others out"
        )
    (run,) = asked.runs
    with connect(url) as client:
        headlines = [client.headline(run)] if asked.format == "table" else []
        choice = asked.choose(headlines)
        steps = {"first": asked.steps.first, "last": asked.steps.until}
        buckets = client.buckets(run, choice.names, points=points, variant=asked.variant, x=asked.x, **steps)
    with printed_to(output):
        print_document(asked.format, buckets, print_buckets, write_buckets_csv)
    _say_hidden(choice)


def _say_hidden(choice: Choice) -> None:
    """Say how many metrics the table does not show."""
    if choice.hidden:
        metrics = "metric is" if choice.hidden == 1 else "metrics are"
        say(f"{choice.hidden:,} more {metrics} not in the headline; --all shows every metric", err=True)


@commands.command("import")
def import_history(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Name of the training run, which is created if it does not exist.",
            autocompletion=complete_run,
        ),
    ],
    file: Annotated[Path, typer.Argument(help="CSV file with a header line, or JSON lines.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Import only this metric; repeat for several. With an export of TensorBoard: the name of its metric.",
            show_default="all",
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Origin of the values.", show_default="the file's name")] = None,
    protocol: Annotated[str, typer.Option(help="How the values were measured, in words.")] = "not stated",
    unit: Annotated[str, typer.Option(help="Unit of the values.", show_default="none")] = "",
    direction: Annotated[Direction, typer.Option(help="Which direction is better.")] = "none",
    variant: Annotated[str, typer.Option(help="Variant of the weights that were measured.")] = "raw",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other values of the same steps, measured values too.")
    ] = False,
    url: Url = None,
) -> None:
    """Import values that another tool measured into the history of a run, which marks them as imported.

    The file has one of three forms: the columns step, metric and value, and optionally stderr, n, unit, direction,
    variant and protocol; or a column of steps and a column for each metric, as Weights & Biases exports; or an export
    of TensorBoard. A repeated import changes nothing, so repeat an import that was interrupted.
    """
    defaults = Defaults(unit, direction, variant, protocol)
    series = read_series(file, metric or [], defaults)
    with connect(url) as client:
        done = [client.import_values(run, source or file.name, part, replace=replace) for part in requests(series)]
    new, replaced, unchanged = (sum(getattr(part, name) for part in done) for name in ("new", "replaced", "unchanged"))
    metrics = counted(len({item.head.metric for item in series}), "metric")
    say(
        f"{counted(new + replaced + unchanged, 'value')} of {metrics}: {new:,} new, {replaced:,} replaced, "
        f"{unchanged:,} unchanged"
    )
