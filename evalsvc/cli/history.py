"""`evalsvc history` and `evalsvc import`: numbers come out, and numbers of other tools go in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.history_files import Defaults, read_series, requests
from evalsvc.cli.history_tables import (
    print_curves,
    print_history,
    print_tradeoff,
    write_curves_csv,
    write_history_csv,
    write_tradeoff_csv,
)
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import Format, Url, connect, print_document
from evalsvc.cli.terminal import say
from evalsvc.compare.curves import join_histories, require_comparable, tabulate
from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.documents.history import Axis

commands = typer.Typer()


@commands.command()
def history(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="The training run, or several on one curve.", autocompletion=complete_run),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="<task>/<metric>; repeat for several.", show_default="all", autocompletion=complete_metric),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Only these weights.", show_default="all")] = None,
    x: Annotated[Axis, typer.Option("--x", help="Along training steps or tokens.")] = "step",
    against: Annotated[
        str | None, typer.Option(help="A metric: a line per checkpoint, with the others beside it.", show_default="no")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Of several runs, also what was measured by different protocols.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print it.")] = "table",  # noqa: A002
    url: Url = None,
) -> None:
    """Show a run's metrics along its training, or those of several runs side by side.

    What was measured by different protocols is never on one curve: of one run it is shown apart, with the fields that
    differ; of several runs it is refused with them, and the exit code is 2, unless --force is given.
    """
    names = [*(metric or []), *([against] if against and metric else [])]
    with connect(url) as client:
        histories = [client.history(run, names, variant=variant, x=x) for run in dict.fromkeys(runs)]
        if against is not None:
            joined = join_histories(histories, client.protocol, force)
            print_document(format, tabulate(joined, against), print_tradeoff, write_tradeoff_csv)
            require_comparable(joined)
            return
        if len(histories) == 1:
            print_document(format, histories[0], print_history, write_history_csv)
            return
        joined = join_histories(histories, client.protocol, force)
    print_document(format, joined, print_curves, write_curves_csv)
    require_comparable(joined)


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
