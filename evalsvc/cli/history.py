"""`evalsvc history` and `evalsvc import`: numbers come out, and numbers of other tools go in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

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
from evalsvc.cli.options import Format, Url, connect, print_document
from evalsvc.cli.terminal import say
from evalsvc.compare.curves import join_histories, require_comparable, tabulate
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.documents.history import Axis

commands = typer.Typer()


Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="<task>/<metric>, or a pattern; repeat for several.",
        show_default="the headline",
        autocompletion=complete_metric,
    ),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Show every metric, perplexities and other companions as rows, too.")
]
First = Annotated[int | None, typer.Option("--from", min=0, help="Show nothing before this step.")]
Until = Annotated[int | None, typer.Option("--to", min=0, help="Show nothing after this step.")]
Last = Annotated[int | None, typer.Option(min=1, help="Show the last so many steps.", show_default="all")]
Points = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, help="Show at most so many ranges of steps, with last, least, most and mean."),
]


@commands.command()
def history(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="The training run, or several on one curve.", autocompletion=complete_run
        ),
    ],
    metric: Metrics = None,
    everything: Everything = False,
    variant: Annotated[str | None, typer.Option(help="Only these weights.", show_default="all")] = None,
    x: Annotated[Axis, typer.Option("--x", help="Along training steps or tokens.")] = "step",
    first: First = None,
    until: Until = None,
    last: Last = None,
    points: Points = None,
    against: Annotated[
        str | None,
        typer.Option(help="A metric: a row per checkpoint, with the other metrics next to it.", show_default="no"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With several runs, show values of different protocols, too.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print it.")] = "table",  # noqa: A002
    url: Url = None,
) -> None:
    """Show a run's metrics along its training, or those of several runs side by side.

    The table has the metrics that the suites of the run name as their headline; without a headline, six are chosen.
    `--all` shows the others. Perplexities, unigram losses and chance stand next to their metric. The formats csv and
    json have every metric.

    Values of different protocols are never on one curve. Those of one run are shown apart, with the fields that differ.
    Those of several runs are refused with the fields that differ, and the exit code is 2, unless --force is given.
    """
    names = tuple(dict.fromkeys(runs))
    asked = Asked(names, tuple(metric or ()), everything, against, variant, x, Steps(first, until, last), format)
    if points is not None:
        _print_points(asked, points, url)
        return
    with connect(url) as client:
        headlines = [client.headline(run) for run in names] if format == "table" else []
        choice = asked.choose(headlines)
        histories = asked.read(client, choice, headlines)
        if against is None and len(names) == 1:
            left_out = asked.without_value(headlines)
            table = partial(print_history, named=asked.metrics, left_out=left_out, whole=everything)
            print_document(format, histories[0], table, write_history_csv)
            _say_hidden(choice)
            return
        joined = join_histories(histories, client.protocol, force)
    if against is None:
        print_document(format, joined, print_curves, write_curves_csv)
    else:
        print_document(format, tabulate(joined, against), print_tradeoff, write_tradeoff_csv)
    _say_hidden(choice)
    require_comparable(joined)


def _print_points(asked: Asked, points: int, url: str | None) -> None:
    """Print one run in ranges of steps."""
    if len(asked.runs) > 1 or asked.against is not None or asked.steps.last is not None:
        raise InvalidRequest("--points is for one run, without --against and --last; leave the others out")
    (run,) = asked.runs
    with connect(url) as client:
        headlines = [client.headline(run)] if asked.format == "table" else []
        choice = asked.choose(headlines)
        steps = {"first": asked.steps.first, "last": asked.steps.until}
        found = client.buckets(run, choice.names, points=points, variant=asked.variant, x=asked.x, **steps)
    print_document(asked.format, found, print_buckets, write_buckets_csv)
    _say_hidden(choice)


def _say_hidden(choice: Choice) -> None:
    """Say that there are more metrics than the table has."""
    if choice.hidden:
        metrics = "metric is" if choice.hidden == 1 else "metrics are"
        say(f"{choice.hidden:,} more {metrics} not in the headline; --all shows every metric", err=True)


@commands.command("import")
def import_history(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The training run; it begins here where there is none.", autocompletion=complete_run
        ),
    ],
    file: Annotated[Path, typer.Argument(help="CSV with a head, or JSON lines.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Only these; of a TensorBoard export, the name.", show_default="all")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the values are from.", show_default="the file's name")
    ] = None,
    protocol: Annotated[str, typer.Option(help="How they were measured, in words.")] = "not stated",
    unit: Annotated[str, typer.Option(help="Their unit.", show_default="none")] = "",
    direction: Annotated[Direction, typer.Option(help="Which way is better.")] = "none",
    variant: Annotated[str, typer.Option(help="Which weights they are of.")] = "raw",
    replace: Annotated[bool, typer.Option("--replace", help="Put them in the place of other values.")] = False,
    url: Url = None,
) -> None:
    """Enter values that were measured elsewhere into a run's history, where they are marked as imported.

    The columns are step, metric and value, and where they are known stderr, n, unit, direction, variant and protocol;
    or a step and a column per metric, as Weights & Biases exports them; or those of TensorBoard's exports. The same
    again changes nothing, so that an import which was cut off is done again whole.
    """
    defaults = Defaults(unit, direction, variant, protocol)
    series = read_series(file, metric or [], defaults)
    with connect(url) as client:
        done = [client.import_values(run, source or file.name, part, replace=replace) for part in requests(series)]
    new, replaced, unchanged = (sum(getattr(part, name) for part in done) for name in ("new", "replaced", "unchanged"))
    metrics = len({item.head.metric for item in series})
    say(
        f"{new + replaced + unchanged:,} values of {metrics} metrics: {new:,} entered, {replaced:,} replaced, "
        f"{unchanged:,} there already"
    )
