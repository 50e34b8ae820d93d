"""`evalsvc backup` and `evalsvc restore`: database and data folder as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.options import DatabaseUrl, DataDir
from evalsvc.cli.terminal import say, warn
from evalsvc.cli.wording import counted
from evalsvc.config import Settings
from evalsvc.errors import first_few
from evalsvc.store.backup.manifest import Manifest
from evalsvc.store.backup.restoring import restore_backup
from evalsvc.store.backup.writing import write_backup

commands = typer.Typer()


@commands.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write, a tar that only its owner may read.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    spool: Annotated[
        bool, typer.Option(help="Include the checkpoints that the service keeps, which may be large.")
    ] = True,
) -> None:
    """Write the database and the data folder to one file, consistent with each other, while the service runs.

    The backup has all results, and the hashes of tokens. Assets, data sets, caches and checkpoints that were posted
    without --spool are not part of the backup.
    """
    written = write_backup(Settings.load(data_dir=data_dir, database_url=database_url), file, force=force, spool=spool)
    _warn_of_lost(written.manifest)
    say(f"{file}: {written.size:,} bytes, {_contents(written.manifest)}")


@commands.command()
def restore(
    file: Annotated[Path, typer.Argument(help="File that `evalsvc backup` has written.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Restore a backup into an empty database, SQLite or PostgreSQL, and a new data folder.

    Stop the service of that database first. The database stays empty until the whole backup has been checked.
    """
    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    manifest = restore_backup(settings, file)
    _warn_of_lost(manifest)
    say(f"restored {_contents(manifest)}, backed up {manifest.made}; data folder: {settings.data_path}")


def _contents(manifest: Manifest) -> str:
    rows = sum(table.rows for table in manifest.tables)
    return f"{counted(rows, 'row')} and {counted(manifest.files, 'file')}"


def _warn_of_lost(manifest: Manifest) -> None:
    if manifest.lost:
        names = first_few(manifest.lost_names, 5)
        lost = counted(manifest.lost, "file")
        warn(f"{lost} of the data folder missing or damaged before the backup: {names}")
