"""The command line: all commands as one program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from evalsvc import __version__
from evalsvc.cli import (
    artifacts,
    checkpoints,
    doctor,
    evaluate,
    history,
    judge,
    metrics,
    runs,
    service,
    setup,
    status,
    token,
    watch,
)
from evalsvc.cli.terminal import complain, say, warn
from evalsvc.config import unknown_variables
from evalsvc.errors import EvalsvcError

if TYPE_CHECKING:
    pass


app = typer.Typer(
    name="evalsvc",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Evaluate the checkpoints of auto-regressive text-to-image models, and keep one history of metrics per "
    "training step.\n\nBegin with [bold]evalsvc serve[/bold]; post with [bold]evalsvc submit[/bold]; read with "
    "[bold]evalsvc history[/bold]. Every option that is a setting can also be given as a variable "
    "[bold]EVALSVC_…[/bold]; [bold]evalsvc doctor[/bold] lists them.",
)


WRONG_USE, INTERRUPTED = 2, 130
"""Exit codes: it could not be tried; Ctrl-C."""


def main() -> NoReturn:
    """The console script: every error that evalsvc raises on purpose is one line and exit code 2."""
    try:
        app(prog_name="evalsvc")
    except EvalsvcError as error:
        complain(f"{error.message} [{error.code}]")
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"evalsvc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    for warning in unknown_variables():
        warn(warning)


for group in (
    service,
    status,
    checkpoints,
    watch,
    runs,
    artifacts,
    history,
    evaluate,
    judge,
    metrics,
    doctor,
    setup,
    token,
):
    app.add_typer(group.commands)
