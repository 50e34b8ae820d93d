"""`evalsvc assets`, `reference` and `benchmarks`: weights, statistics of real images, and the data of lm-eval.

Modules that import lm-eval are imported when a command runs, since lm-eval is installed on workers only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.assets import ASSETS, find_asset, locate_asset, pull, read_record
from evalsvc.cli.lazy_group import add_group
from evalsvc.cli.options import DataDir, Form, Output
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.progress import show_transfer
from evalsvc.cli.terminal import say
from evalsvc.config import Settings
from evalsvc.errors import AssetCorrupt, AssetMissing, InvalidRequest

commands = typer.Typer()
assets_app = add_group(commands, "assets", "Fetch the weights of networks that some suites need.")
reference_app = add_group(commands, "reference", "Import statistics of real images, which FID compares with.")
benchmarks_app = add_group(commands, "benchmarks", "List and prepare lm-eval's benchmarks, for tasks of kind language.")

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
        row = {"asset": asset.name, "state": state, "about": f"{asset.megabytes} MB", "what for": asset.purpose}
        rows.append({**row, "from": source})
    with printed_to(output):
        print_rows(rows, form, "assets", "", drop=("from",))


@reference_app.command(name="import")
def import_reference(
    file: Annotated[
        Path, Argument(help="File .npz with mu and sigma of Inception features, and with mu_s and sigma_s for sFID.")
    ],
    name: Annotated[str, Option(help="Name by which suites refer to the statistics.")],
    n: Annotated[int | None, Option(help="Number of images behind the statistics.", show_default="unknown")] = None,
    data_dir: DataDir = None,
) -> None:
    """Import reference statistics that another program computed. Protocols that use them say so."""
    # The reader is a module of workers, and needs NumPy.
    from evalsvc.tasks.reference_statistics import import_npz

    say(f"{name}: {import_npz(file, name, Settings.load(data_dir=data_dir).statistics_path, n)}")


IncludePath = Annotated[
    list[Path] | None, Option(help="Folder with your own lm-eval YAML files; repeat for several.", show_default="none")
]


@benchmarks_app.command(name="list")
def list_benchmarks(
    words: Annotated[str | None, Argument(metavar="FILTER", help="Show only names that contain this text.")] = None,
    include_path: IncludePath = None,
    form: Form = "table",
    output: Output = None,
) -> None:
    """List benchmarks, and the groups and tags that stand for several benchmarks."""
    from evalsvc.language.catalog import Registry

    entries = Registry(include_path or []).search(words or "")
    rows = [{"name": entry.name, "kind": entry.kind, "from": entry.origin} for entry in entries]
    with printed_to(output):
        print_rows(rows, form, "benchmarks", f"no benchmark has {words!r} in its name")


@benchmarks_app.command(name="prepare")
def prepare_benchmarks(
    names: Annotated[list[str], Argument(metavar="NAME", help="Names of benchmarks; see `evalsvc benchmarks list`.")],
    include_path: IncludePath = None,
) -> None:
    """Download the data of benchmarks into the cache of the Hugging Face hub; evaluations download nothing."""
    from evalsvc.language.benchmarks import LoadOptions, prepare

    options = LoadOptions.of(Settings.load(), include_path or ())
    for name in names:
        for ready in prepare(name, options):
            rows = ", ".join(f"{count:,} rows of {split!r}" for split, count in ready.splits.items())
            say(f"{ready.name}: {ready.source}, {rows}" if rows else f"{ready.name}: needs no data set of the hub")
