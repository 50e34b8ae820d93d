"""`evalsvc status`: state of the service."""

from __future__ import annotations

from functools import partial

import typer

from evalsvc.cli.answers import print_one, printed_to
from evalsvc.cli.options import FAILED, Form, Output, Url, connect
from evalsvc.cli.status_screen import line_style, status_screen
from evalsvc.cli.terminal import say, terminal_width
from evalsvc.spec.documents import Status

commands = typer.Typer()


@commands.command()
def status(
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the state of the service: workers and their tasks, the queue, and the last failures.

    The exit code is 1 if the service cannot evaluate, and 2 if the service does not answer.
    """
    with connect(url) as client:
        document = client.status()
        address = client.url
    with printed_to(output):
        print_one(document, form, partial(_print_screen, address))
    if document.status != "ready":
        raise typer.Exit(FAILED)


def _print_screen(address: str, document: Status) -> None:
    for line in status_screen(document, address, terminal_width()):
        say(line, style=line_style(line))
