"""`evalsvc protocol`: show how values were measured, and how two protocols differ."""

from __future__ import annotations

from typing import Annotated

import typer

from evalsvc.cli.answers import first_rows, page_size, print_list, print_rows, printed_to
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import Form, Limit, OfRun, Output, Url, connect
from evalsvc.cli.terminal import say, say_json
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import ListedProtocol
from evalsvc.spec.names import CHECKPOINT
from evalsvc.spec.protocol import ABSENT, differences, differences_to_json, short_json
from evalsvc.web.protocol_files import Measured, known_files, measured_by, protocol_of

commands = typer.Typer()
protocol_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Show how values were measured, and how two protocols differ."
)
commands.add_typer(protocol_app, name="protocol")

NAME_HELP = "Id of a protocol, or a checkpoint as RUN@STEP."
Name = Annotated[str, typer.Argument(metavar="ID", help=NAME_HELP, autocompletion=complete_run)]
A = Annotated[str, typer.Argument(metavar="A", help=NAME_HELP, autocompletion=complete_run)]
B = Annotated[str, typer.Argument(metavar="B", help="Second protocol, in the same form.", autocompletion=complete_run)]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Show only the protocols of this metric, for RUN@STEP.", show_default="all", autocompletion=complete_metric
    ),
]

LONGEST = 120
"""Most characters of a value that are shown. JSON has the whole value."""


@protocol_app.command("list")
def list_protocols(
    run: OfRun = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Show only protocols of this metric; repeat for several.",
            show_default="all",
            autocompletion=complete_metric,
        ),
    ] = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List protocols with the metrics that were measured by them."""
    with connect(url) as client, printed_to(output):
        protocols = first_rows(client.protocols(run, metric or (), page_size=page_size(limit)), limit)
        print_list(protocols, form, "protocols", _row, "no protocol matches")


def _row(protocol: ListedProtocol) -> dict[str, str]:
    return {"protocol": protocol.id, "runs": f"{protocol.runs:,}", "metrics": ", ".join(protocol.metrics)}


@protocol_app.command()
def show(
    name: Name,
    metric: Metric = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show every field of a protocol, with the names of files and assets next to their digests.

    RUN@STEP shows the protocols of the metrics of a checkpoint. The names of files are known only for RUN@STEP, since a
    protocol holds only digests.
    """
    with connect(url) as client, printed_to(output):
        if CHECKPOINT.fullmatch(name):
            measured = measured_by(client, name, metric)
        elif metric is not None:
            raise InvalidRequest(f"--metric is given with {name}, which is not RUN@STEP; leave --metric out")
        else:
            measured = [Measured(name, client.protocol(name), (), known_files())]
        if form == "json":
            say_json({"protocols": [{"id": item.protocol, "content": item.content} for item in measured]})
        elif form == "csv":
            rows = [
                {"protocol": item.protocol, "field": field, "value": value, "file": file}
                for item in measured
                for field, value, file in item.fields()
            ]
            print_rows(rows, form, "protocols", "")
        else:
            for item in measured:
                _print(item)


def _print(measured: Measured) -> None:
    metrics = f" measured {', '.join(measured.metrics)}" if measured.metrics else ""
    say(f"protocol {measured.protocol}{metrics}:")
    for field, value, file in measured.fields():
        text = value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
        say(f"  {field}: {text}" + (f" ({file})" if file else ""))


@protocol_app.command()
def diff(
    a: A,
    b: B,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric whose protocols are compared, for RUN@STEP.", autocompletion=complete_metric),
    ] = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the fields in which two protocols differ."""
    with connect(url) as client, printed_to(output):
        differing = differences(protocol_of(client, a, metric), protocol_of(client, b, metric))
        if form == "json":
            say_json(differences_to_json(differing))
            return
        sides = ("a", "b") if a == b or form == "csv" else (a, b)
        rows = [
            {"field": field, **{side: _shown(value) for side, value in zip(sides, values, strict=True)}}
            for field, values in differing.items()
        ]
        print_rows(rows, form, "differences", f"{a} and {b} are the same protocol")


def _shown(value: object) -> str:
    return "" if value is ABSENT else short_json(value)
