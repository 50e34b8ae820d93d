"""Questions before something is changed for good."""

from __future__ import annotations

import sys

import typer

from evalsvc.errors import InvalidRequest


def confirm(what: str, yes: bool) -> None:
    """Ask whether to go on, unless `yes`; `what` is what would be done, such as `queue 5 evaluations`.

    Raises:
        InvalidRequest: nobody can be asked, since standard input is no terminal.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(f"this would {what}, and nobody can be asked: give --yes")
    if not typer.confirm(f"{what}?", err=True):
        raise typer.Exit(1)


def confirm_by_name(what: str, name: str, yes: bool) -> None:
    """Ask for the name of what would be deleted, unless `yes`; `what` is what would be deleted.

    Raises:
        InvalidRequest: nobody can be asked, since standard input is no terminal, or another name is typed.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{what} would be deleted for good; give --yes if that is meant")
    typed = typer.prompt(f"{what} would be deleted for good; type its name to go on", err=True)
    if typed != name:
        raise InvalidRequest(f"{typed!r} is not {name!r}; nothing was deleted")
