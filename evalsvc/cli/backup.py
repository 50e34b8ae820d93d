"""`evalsvc backup` and `evalsvc restore`: database and data folder as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import DatabaseUrl, DataDir
from evalsvc.cli.terminal import say, warn
from evalsvc.cli.wording import counted
from evalsvc.config import Settings
from evalsvc.errors import first_few
from evalsvc.store.backup import restore_backup, write_backup

commands = typer.Typer()


@commands.command()
def backup(
    file: Annotated[Path, Argument(help="File to write, a tar that only its owner may read.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    force: Annotated[bool, Option("--force", help="Replace the file if it exists.")] = False,
    spool: Annotated[bool, Option(help="Include the checkpoints that the service keeps, which may be large.")] = True,
) -> None:
    """Write the database and the data folder to one file, consistent with each other, while the service runs.

    The backup has all results, and the hashes of tokens. Assets, data sets, caches and checkpoints that were posted
    without --spool are not part of the backup.
    """
    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    _warn_of_lost(write_backup(settings, file, force=force, spool=spool))
    say(f"{file}: {file.stat().st_size:,} bytes")


@commands.command()
def restore(
    file: Annotated[Path, Argument(help="File that `evalsvc backup` has written.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Restore a backup into an empty database, SQLite or PostgreSQL, and a new data folder.

    Stop the service of that database first. The database stays empty until the whole backup has been restored.
    """
    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    _warn_of_lost(restore_backup(settings, file))
    say(f"restored {file}; data folder: {settings.data_path}")


def _warn_of_lost(names: list[str]) -> None:
    if names:
        lost = counted(len(names), "file")
        warn(f"{lost} of the data folder missing or damaged before the backup: {first_few(names, 5)}")
