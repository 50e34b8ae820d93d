"""`evalsvc reference`: statistics of real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.options import DataDir
from evalsvc.cli.terminal import say
from evalsvc.config import Settings

commands = typer.Typer()
reference_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Import statistics of real images, which FID compares with."
)
commands.add_typer(reference_app, name="reference")


@reference_app.command(name="import")
def import_reference(
    file: Annotated[Path, Argument(help="File .npz with mu and sigma of Inception features.")],
    name: Annotated[str, Option(help="Name by which suites refer to the statistics.")],
    n: Annotated[int | None, Option(help="Number of images behind the statistics.", show_default="unknown")] = None,
    data_dir: DataDir = None,
) -> None:
    """Import reference statistics that another program computed. Protocols that use them say so."""
    # The reader is a module of workers, and needs NumPy.
    from evalsvc.tasks.reference_statistics import import_npz

    say(f"{name}: {import_npz(file, name, Settings.load(data_dir=data_dir).statistics_path, n)}")
