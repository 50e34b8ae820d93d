"""Artifacts of the service: which are kept, and removing the others."""

from __future__ import annotations

from typing import Annotated

import typer

from evalsvc.cli.options import Url, connect
from evalsvc.cli.terminal import say
from evalsvc.errors import InvalidRequest

commands = typer.Typer()
artifacts_app = typer.Typer(no_args_is_help=True, help="Image grids, samples and pages: which of them are kept.")
commands.add_typer(artifacts_app, name="artifacts")


@artifacts_app.command()
def keep(
    run: Annotated[str, typer.Argument(help="The training run.")],
    last: Annotated[int | None, typer.Option(min=1, help="So many steps, the highest.", show_default="none")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Steps that are multiples.", show_default="none")] = None,
    days: Annotated[float | None, typer.Option(help="What was evaluated in so many days.", show_default="none")] = None,
    best: Annotated[str | None, typer.Option(help="Where this metric is best.", show_default="none")] = None,
    default: Annotated[bool, typer.Option("--default", help="What the service's own rule says.")] = False,
    url: Url = None,
) -> None:
    """Say, or show, which artifacts of a run are kept; what any option keeps is kept, the others are pruned."""
    given = {"last": last, "every": every, "days": days, "best": best}
    rule = {name: value for name, value in given.items() if value is not None}
    if rule and default:
        raise InvalidRequest("--default takes the run's own rule away; leave the others out")
    with connect(url) as client:
        retention = client.put_retention(run, rule or None) if rule or default else client.retention(run)
    if retention.keep is None:
        say(f"run {run} keeps all artifacts")
        return
    parts = ", ".join(f"{name} {value}" for name, value in retention.keep.items())
    say(f"run {run} keeps {parts} (the {retention.from_}'s rule)")


@artifacts_app.command()
def prune(
    run: Annotated[str | None, typer.Option(help="Only of this run.", show_default="all")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be pruned.")] = False,
    url: Url = None,
) -> None:
    """Remove the artifacts that the rules do not keep; the service does it by itself every hour."""
    with connect(url) as client:
        pruned = client.prune(run, dry_run=dry_run)
    for name, count in pruned.runs.items():
        say(f"{name}: {count:,} artifacts")
    if dry_run:
        say(f"{pruned.artifacts:,} artifacts would be pruned, {pruned.bytes:,} bytes")
    else:
        say(f"{pruned.artifacts:,} artifacts are pruned, {pruned.freed_bytes:,} bytes freed")
