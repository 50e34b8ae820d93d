"""`evalsvc status`: how the service is, for people."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from evalsvc.cli.options import FAILED, Url, connect
from evalsvc.cli.status_screen import status_screen
from evalsvc.cli.terminal import say, say_json
from evalsvc.spec.documents.reading import content_of

commands = typer.Typer()


@commands.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="The whole of it, for programs.")] = False,
    url: Url = None,
) -> None:
    """Show how the service is: its workers and what they run, the queue, what failed last.

    The exit code is 1 when it cannot evaluate, and 2 when nothing answers.
    """
    with connect(url) as client:
        document = client.status()
        address = client.url
    if as_json:
        say_json(content_of(document))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        say("\n".join(status_screen(document, address, width)))
    if document.status != "ready":
        raise typer.Exit(FAILED)
