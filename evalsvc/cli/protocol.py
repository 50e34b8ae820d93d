"""`evalsvc protocol`: how values were measured, in words, and how two protocols differ."""

from __future__ import annotations

from typing import Annotated

import typer

from evalsvc.cli.answers import first_rows, page_size, print_list, print_rows, printed_to
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_metric, complete_run
from evalsvc.cli.options import Form, Limit, OfRun, Output, Url, connect
from evalsvc.cli.protocol_files import Measured, known_files, measured_by, protocol_of
from evalsvc.cli.terminal import say, say_json
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import ListedProtocol
from evalsvc.spec.names import CHECKPOINT
from evalsvc.spec.protocol import ABSENT, differences, differences_to_json, short_json

commands = typer.Typer()
protocol_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Show how a value was measured, and what differs."
)
commands.add_typer(protocol_app, name="protocol")

Name = Annotated[
    str,
    typer.Argument(metavar="ID", help="A protocol's id, or a checkpoint as RUN@STEP.", autocompletion=complete_run),
]
Metric = Annotated[
    str | None,
    typer.Option(help="Of RUN@STEP, only this metric's.", show_default="all", autocompletion=complete_metric),
]

LONGEST = 120
"""Characters of a value that are shown. JSON has all of them."""


@protocol_app.command("list")
def list_protocols(
    run: OfRun = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Only of this metric; repeat for several.", show_default="all", autocompletion=complete_metric
        ),
    ] = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List protocols with the metrics that were measured by them."""
    with connect(url) as client, printed_to(output):
        found = first_rows(client.protocols(run, metric or (), page_size=page_size(limit)), limit)
        print_list(found, form, "protocols", _row, "there is no such protocol")


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
    """Show everything that moves a number measured by a protocol, with files and assets next to their digests.

    RUN@STEP shows the protocols of a checkpoint's metrics. Only then is it known which files the digests are of.
    """
    with connect(url) as client, printed_to(output):
        if CHECKPOINT.fullmatch(name):
            found = measured_by(client, name, metric)
        elif metric is not None:
            raise InvalidRequest(f"--metric is for RUN@STEP, and {name} is none; leave the option out")
        else:
            found = [Measured(name, client.protocol(name), (), known_files())]
        if form == "json":
            say_json({"protocols": [{"id": each.protocol, "content": each.content} for each in found]})
        elif form == "csv":
            rows = [
                {"protocol": each.protocol, "field": field, "value": value, "file": file}
                for each in found
                for field, value, file in each.fields()
            ]
            print_rows(rows, form, "protocols", "")
        else:
            for each in found:
                _print(each)


def _print(measured: Measured) -> None:
    metrics = f" measured {', '.join(measured.metrics)}" if measured.metrics else ""
    say(f"protocol {measured.protocol}{metrics}:")
    for field, value, file in measured.fields():
        text = value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
        say(f"  {field}: {text}" + (f" ({file})" if file else ""))


@protocol_app.command()
def diff(
    a: Name,
    b: Name,
    metric: Annotated[
        str | None, typer.Option(help="The metric, where RUN@STEP is given.", autocompletion=complete_metric)
    ] = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the fields in which two protocols differ."""
    with connect(url) as client, printed_to(output):
        found = differences(protocol_of(client, a, metric), protocol_of(client, b, metric))
        if form == "json":
            say_json(differences_to_json(found))
            return
        sides = ("a", "b") if a == b or form == "csv" else (a, b)
        rows = [
            {"field": field, **{side: _shown(value) for side, value in zip(sides, values, strict=True)}}
            for field, values in found.items()
        ]
        print_rows(rows, form, "differences", f"{a} and {b} are the same protocol")


def _shown(value: object) -> str:
    return "" if value is ABSENT else short_json(value)
