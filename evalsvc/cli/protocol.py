"""`evalsvc protocol`: show how values were measured, and how two protocols differ."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import Form, Format, Limit, Output, Url, complete_metric, complete_run, connect, refuse
from evalsvc.cli.printer import Row, first_rows, page_size, print_list, print_rows, printed_to
from evalsvc.cli.terminal import say, say_json
from evalsvc.client import Client
from evalsvc.errors import InvalidRequest
from evalsvc.spec.names import is_checkpoint
from evalsvc.spec.protocol import ABSENT, differences, differences_to_json, short_json
from evalsvc.web.protocol_files import Measured, known_files, measured_by, protocol_of

commands = typer.Typer()

LONGEST = 120
"""Most characters of a value that are shown. JSON has the whole value."""


@commands.command()
def protocol(
    a: Annotated[
        str | None,
        Argument(
            metavar="ID",
            help="Id of a protocol, or a checkpoint as RUN@STEP.",
            show_default="all, in a list",
            autocompletion=complete_run,
        ),
    ] = None,
    b: Annotated[
        str | None,
        Argument(
            metavar="ID2",
            help="Protocol to compare the first with, in the same form.",
            show_default="none",
            autocompletion=complete_run,
        ),
    ] = None,
    run: Annotated[
        str | None, Option(help="List protocols of this run.", show_default="all", autocompletion=complete_run)
    ] = None,
    metric: Annotated[
        list[str] | None,
        Option(
            help="Only protocols of this metric; repeat for several in a list.",
            show_default="all",
            autocompletion=complete_metric,
        ),
    ] = None,
    limit: Limit = 100,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List protocols with their metrics; or show the fields of a protocol; or the fields in which two protocols differ.

    RUN@STEP stands for the protocols of the metrics of a checkpoint. The names of the files that digests are of are
    known only for RUN@STEP, since a protocol holds only digests. Two checkpoints are compared in one --metric.
    """
    metrics = metric or []
    if a is not None:
        refuse({"--run": run}, f"with {a}")
        if len(metrics) > 1:
            raise InvalidRequest(f"{len(metrics)} metrics are given with {a}; name one --metric")
    with connect(url) as client, printed_to(output):
        if a is None:
            protocols = first_rows(client.protocols(run, metrics, page_size=page_size(limit)), limit)
            print_list(protocols, ("id", "runs", "metrics"), form, "protocols", "no protocol matches")
        elif b is None:
            _print_protocol(client, a, next(iter(metrics), None), form)
        else:
            _print_differences(client, a, b, next(iter(metrics), None), form)


def _print_protocol(client: Client, name: str, metric: str | None, form: Format) -> None:
    if is_checkpoint(name):
        measured = measured_by(client, name, metric)
    else:
        refuse({"--metric": metric}, f"with {name}, which is not RUN@STEP")
        measured = [Measured(name, client.protocol(name), (), known_files())]
    if form == "json":
        say_json({"protocols": [{"id": item.protocol, "content": item.content} for item in measured]})
    elif form == "csv":
        rows: list[Row] = [
            {"protocol": item.protocol, "field": field, "value": value, "file": file}
            for item in measured
            for field, value, file in item.fields()
        ]
        print_rows(rows, form, "protocols", "")
    else:
        for item in measured:
            metrics = f" measured {', '.join(item.metrics)}" if item.metrics else ""
            say(f"protocol {item.protocol}{metrics}:")
            for field, value, file in item.fields():
                text = value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
                say(f"  {field}: {text}" + (f" ({file})" if file else ""))


def _print_differences(client: Client, a: str, b: str, metric: str | None, form: Format) -> None:
    differing = differences(protocol_of(client, a, metric), protocol_of(client, b, metric))
    if form == "json":
        say_json(differences_to_json(differing))
        return
    sides = ("a", "b") if a == b or form == "csv" else (a, b)
    rows = [
        {"field": field}
        | {side: "" if value is ABSENT else short_json(value) for side, value in zip(sides, values, strict=True)}
        for field, values in differing.items()
    ]
    print_rows(rows, form, "differences", f"{a} and {b} are the same protocol")
