"""Questions before an irrevocable change."""

from __future__ import annotations

import sys

import typer

from evalsvc.errors import InvalidRequest


def confirm(what: str, yes: bool) -> None:
    """Ask for confirmation of `what`, such as `queue 5 evaluations`, unless `yes` is set.

    Raises:
        InvalidRequest: standard input is no terminal, so nobody can be asked.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"the command would {what}, and standard input is no terminal to ask for confirmation; give --yes"
        )
    if not typer.confirm(f"{what}?", err=True):
        raise typer.Exit(1)


def confirm_by_name(what: str, name: str, yes: bool) -> None:
    """Ask the user to type the name of `what`, which would be deleted, unless `yes` is set.

    Raises:
        InvalidRequest: standard input is no terminal, so nobody can be asked, or another name is typed.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"{what} would be deleted, and standard input is no terminal to ask for confirmation; give --yes"
        )
    typed = typer.prompt(f"{what} would be deleted irrevocably; type {name} to confirm", err=True)
    if typed != name:
        raise InvalidRequest(
            f"{typed!r} was typed instead of {name!r}, so nothing was deleted; run the command again to delete"
        )
