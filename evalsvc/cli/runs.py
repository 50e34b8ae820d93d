"""Runs are shown, get another name, or are deleted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from evalsvc.cli.document_text import print_document
from evalsvc.cli.options import Url, connect
from evalsvc.cli.terminal import say, say_json
from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec import documents
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.names import CHECKPOINT, checkpoint_name, parse_checkpoint

commands = typer.Typer()


@commands.command()
def show(
    name: Annotated[str, typer.Argument(help="RUN, or a checkpoint of it: RUN@STEP or RUN@STEP:VARIANT.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole of it, for programs.")] = False,
    url: Url = None,
) -> None:
    """Show a run with its plan, base and checkpoints, or one of its checkpoints with the states of its evaluations."""
    with connect(url) as client:
        document = _checkpoint(client, name) if CHECKPOINT.fullmatch(name) else client.run(name)
    if as_json:
        say_json(content_of(document))
    else:
        print_document(document)


def _checkpoint(client: Client, name: str) -> documents.Checkpoint:
    run, step, variant = parse_checkpoint(name)
    posted = {checkpoint_name(run, one.step, one.variant): one.id for one in client.run(run).checkpoints}
    asked = checkpoint_name(run, step, variant)
    if asked not in posted:
        raise UnknownName.among("checkpoint", asked, posted)
    return client.checkpoint(posted[asked])


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
