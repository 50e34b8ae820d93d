"""`evalsvc status`: how the service is, for people."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evalsvc.cli.answers import printed_to
from evalsvc.cli.options import FAILED, AsJson, Output, Url, connect, form_of
from evalsvc.cli.status_screen import line_style, status_screen
from evalsvc.cli.terminal import say, say_json, terminal_width
from evalsvc.spec.documents.reading import content_of

commands = typer.Typer()


@commands.command()
def status(
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print the answer.")] = "table",
    output: Output = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show how the service is: its workers and what they run, the queue, what failed last.

    The exit code is 1 when it cannot evaluate, and 2 when nothing answers.
    """
    with connect(url) as client:
        document = client.status()
        address = client.url
    with printed_to(output):
        if form_of(form, as_json) == "json":
            say_json(content_of(document))
        else:
            for line in status_screen(document, address, terminal_width()):
                say(line, style=line_style(line))
    if document.status != "ready":
        raise typer.Exit(FAILED)
