"""Runs get another name, or are deleted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from evalsvc.cli.options import Url, connect
from evalsvc.cli.terminal import say
from evalsvc.errors import InvalidRequest

commands = typer.Typer()


@commands.command(name="rename-run")
def rename_run(
    run: Annotated[str, typer.Argument(help="The run.")],
    name: Annotated[str, typer.Argument(help="What it is called from now on.")],
    url: Url = None,
) -> None:
    """Give a run another name, in its history, in expressions, and where it is the base of others."""
    with connect(url) as client:
        client.rename_run(run, name)
    say(f"run {run} is called {name}")


@commands.command(name="delete-run")
def delete_run(
    run: Annotated[str, typer.Argument(help="The run.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop evaluations that wait or run.")] = False,
    url: Url = None,
) -> None:
    """Delete a run with its checkpoints' evaluations, history and artifacts, for good; files that were posted stay."""
    with connect(url) as client:
        count = len(client.run(run).checkpoints)
        if not yes:
            _ask(run, count)
        deleted = client.delete_run(run, cancel=cancel)
    say(
        f"run {run} is deleted: {deleted.checkpoints:,} checkpoints, {deleted.evaluations:,} evaluations, "
        f"{deleted.values:,} values, {deleted.artifacts:,} artifacts, {deleted.freed_bytes:,} bytes of files"
    )


def _ask(run: str, checkpoints: int) -> None:
    what = f"run {run} with {checkpoints} checkpoints would be deleted for good"
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{what}; give --yes if that is meant")
    typed = typer.prompt(f"{what}; type its name to go on")
    if typed != run:
        raise InvalidRequest(f"{typed!r} is not {run!r}; nothing was deleted")
