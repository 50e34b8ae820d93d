"""`evalsvc assets` and `reference`: weights of published networks, and statistics of real images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.assets import ASSETS, find_asset, locate_asset, pull, read_record
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.options import DataDir, Form, Output
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.progress import show_transfer
from evalsvc.cli.terminal import say
from evalsvc.config import Settings
from evalsvc.errors import AssetCorrupt, AssetMissing, InvalidRequest

commands = typer.Typer()
assets_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Fetch the weights of networks that some suites need."
)
commands.add_typer(assets_app, name="assets")

reference_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Import statistics of real images, which FID compares with."
)
commands.add_typer(reference_app, name="reference")

Assets = Annotated[Path | None, Option(help="Folder of the assets.", show_default="`assets` in the data folder")]


@assets_app.command(name="pull")
def pull_assets(
    names: Annotated[list[str], Argument(metavar="NAME", help="Names of assets; see `evalsvc assets list`.")],
    source: Annotated[
        Path | None,
        Option(
            "--from", help="File or folder to copy the asset from.", show_default="download from its official address"
        ),
    ] = None,
    assets: Assets = None,
) -> None:
    """Fetch assets and verify their digests. An interrupted download resumes where it stopped."""
    if source is not None and len(names) > 1:
        raise InvalidRequest(f"--from {source} holds one asset, and {len(names)} assets are named; name one asset")
    folder = Settings.load(assets=assets).assets_path
    for name in names:
        find_asset(name)
    for name in names:
        with show_transfer() as report:
            path = pull(name, folder, source, partial(report, name))
        say(f"{name}: {path}")


@assets_app.command(name="list")
def list_assets(assets: Assets = None, form: Form = "table", output: Output = None) -> None:
    """List the assets that can be pulled, whether they are installed, and their sources."""
    folder = Settings.load(assets=assets).assets_path
    rows: list[dict[str, object]] = []
    for asset in ASSETS.values():
        try:
            locate_asset(asset.name, folder)
            record = read_record(asset.name, folder)
            state, source = "installed", f"{record.source} (sha256 {record.source_sha256})" if record else ""
        except (AssetMissing, AssetCorrupt) as error:
            state, source = ("-" if isinstance(error, AssetMissing) else "CORRUPT"), asset.address
        rows.append(
            {
                "asset": asset.name,
                "state": state,
                "about": f"{asset.megabytes} MB",
                "what for": asset.purpose,
                "from": source,
            }
        )
    with printed_to(output):
        print_rows(rows, form, "assets", "")


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
