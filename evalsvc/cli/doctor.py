"""What is missing for an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from evalsvc.cli.options import FAILED, Suites, text_of
from evalsvc.config import Settings
from evalsvc.terminal import print_settings, print_table

SETUP = "setup"


class SuitesOrCommand(TyperGroup):
    """`doctor`, `doctor SUITE…` and `doctor --option` are `doctor setup …`: commands of its own came later."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if own else [SETUP, *args])


commands = typer.Typer()
doctor_app = typer.Typer(
    cls=SuitesOrCommand,
    subcommand_metavar="[SUITE]... | COMMAND",
    help="Show every setting, and what is missing for an evaluation: `evalsvc doctor [SUITE]...`, in full "
    "`evalsvc doctor setup`.",
)
commands.add_typer(doctor_app, name="doctor")


@doctor_app.command(name=SETUP)
def doctor(
    suite: Annotated[list[str] | None, typer.Argument(help="Only these suites' data.", show_default="all")] = None,
    suites: Suites = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the database.", show_default="~/.local/share/evalsvc")
    ] = None,
) -> None:
    """Show every setting, and what is missing for an evaluation.

    The exit code is 1 when something that is needed is missing.
    """
    from evalsvc.doctor import run_checks

    given: dict[str, Any] = {"suites": text_of(suites), "data_dir": text_of(data_dir)}
    settings = Settings.load(**given)
    print_settings(settings, {name for name, value in given.items() if value is not None})
    checks = run_checks(settings, suite or [])
    print_table(
        ["check", "", "found", "do"],
        [
            [check.name, "ok" if check.ok else "MISSING" if check.needed else "-", check.found, check.do]
            for check in checks
        ],
    )
    if not all(check.ok or not check.needed for check in checks):
        raise typer.Exit(FAILED)
