"""`evalsvc export site`: the dashboard's pages as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.name_completion import complete_run
from evalsvc.cli.options import Url, connect
from evalsvc.cli.progress import show_bars
from evalsvc.cli.terminal import say, warn
from evalsvc.config import Settings
from evalsvc.connection_errors import without_password
from evalsvc.installation import pip_install
from evalsvc.web import vega
from evalsvc.web.formats import bytes_
from evalsvc.web.site import export_site

commands = typer.Typer()
export_app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Write the dashboard's pages of runs as files.")
commands.add_typer(export_app, name="export")


@export_app.command()
def site(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs of the copy.", autocompletion=complete_run)],
    output: Annotated[Path, typer.Option(help="Folder, empty or not there yet.", show_default=False)],
    url: Url = None,
) -> None:
    """Write the pages of runs into a folder: curves, images, text, evaluations, protocols.

    The folder needs no service and no network: a browser opens index.html from the disk, and any host of files serves
    the folder. The charts need the extra `dashboard` on this machine; without it the pages are tables.
    """
    if not vega.is_installed():
        warn(f"the pages have tables and no charts; for charts: {pip_install('dashboard')}")
    names = list(dict.fromkeys(runs))
    with connect(url) as client, show_bars() as bars:
        files = export_site(
            client,
            without_password(Settings.load(url=url).url),
            names,
            output,
            lambda done, total, address: bars.show("pages", done, total, f"pages, now {address}"),
        )
    say(f"{output / 'index.html'}: {len(files):,} files, {bytes_(sum(path.stat().st_size for path in files))}")
