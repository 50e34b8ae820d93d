"""What must be there before anything is measured: weights, benchmarks, references."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.options import text_of
from evalsvc.cli.terminal import Bars, print_table, say, show_bars
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest

commands = typer.Typer()


assets_app = typer.Typer(no_args_is_help=True, help="Weights of other people's networks, which some suites need.")
commands.add_typer(assets_app, name="assets")

benchmarks_app = typer.Typer(no_args_is_help=True, help="lm-eval's benchmarks, which the task `language` asks.")
commands.add_typer(benchmarks_app, name="benchmarks")

reference_app = typer.Typer(no_args_is_help=True, help="Statistics of real images, which FID compares with.")
commands.add_typer(reference_app, name="reference")


Assets = Annotated[Path | None, typer.Option(help="Folder of the assets.", show_default="assets in the data folder")]


@assets_app.command(name="pull")
def pull_assets(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Which; see `evalsvc assets list`.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take this file or folder instead.", show_default="its official address"),
    ] = None,
    assets: Assets = None,
) -> None:
    """Fetch assets and verify them. A download that was cut off goes on where it stopped."""
    from evalsvc.assets import find_asset, pull

    if source is not None and len(names) > 1:
        raise InvalidRequest(f"--from {source} is one file and {len(names)} assets are named; name one")
    folder = Settings.load(assets=text_of(assets)).assets_path
    for name in names:
        find_asset(name)
    for name in names:
        with show_bars() as bars:

            def report(done: int, total: int | None, bars: Bars = bars, name: str = name) -> None:
                bars.show(name, done // 1_000_000, None if total is None else total // 1_000_000, "MB")

            path = pull(name, folder, source, report)
        say(f"{name}: {path}")


@assets_app.command(name="list")
def list_assets(assets: Assets = None) -> None:
    """Show what can be pulled, what is there, and where it came from."""
    from evalsvc.assets import ASSETS, locate_asset, read_record
    from evalsvc.errors import AssetCorrupt, AssetMissing

    folder = Settings.load(assets=text_of(assets)).assets_path
    rows = []
    for asset in ASSETS.values():
        try:
            locate_asset(asset.name, folder)
            record = read_record(asset.name, folder)
            state, source = "there", f"{record.source} (sha256 {record.source_sha256})" if record else ""
        except (AssetMissing, AssetCorrupt) as error:
            state, source = ("-" if isinstance(error, AssetMissing) else "CORRUPT"), asset.address
        rows.append([asset.name, state, f"{asset.megabytes} MB", asset.purpose, source])
    print_table(["asset", "", "about", "what for", "from"], rows)


IncludePath = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of lm-eval YAML files of your own; repeat for several.", show_default="none"),
]


@benchmarks_app.command(name="list")
def list_benchmarks(
    words: Annotated[str | None, typer.Argument(metavar="FILTER", help="Only names with this in them.")] = None,
    include_path: IncludePath = None,
) -> None:
    """Show the names of benchmarks, and of the groups and tags that stand for several."""
    from evalsvc.language.registry import Registry

    entries = Registry(include_path or []).search(words or "")
    print_table(["name", "", "from"], [[entry.name, entry.kind.value, entry.origin] for entry in entries])


@benchmarks_app.command(name="prepare")
def prepare_benchmarks(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Which; see `evalsvc benchmarks list`.")],
    include_path: IncludePath = None,
) -> None:
    """Fetch what benchmarks need from the Hugging Face hub into its cache; an evaluation downloads nothing."""
    from evalsvc.language.benchmarks import LoadOptions, prepare
    from evalsvc.language.definitions import Rules
    from evalsvc.spec.paths import Readable, local_data

    settings = Settings.load()

    rules = Rules(bool(settings.allow_benchmark_code), partial(local_data, settings), Readable(settings))
    for name in names:
        for ready in prepare(name, LoadOptions(tuple(include_path or []), rules=rules)):
            rows = ", ".join(f"{count:,} rows of {split!r}" for split, count in ready.splits.items())
            say(f"{ready.name}: {ready.source}, {rows}" if rows else f"{ready.name}: asks for no dataset of the hub")


@reference_app.command(name="import")
def import_reference(
    file: Annotated[Path, typer.Argument(help="An npz file with mu and sigma of Inception features.")],
    name: Annotated[str, typer.Option(help="What suites call it.")],
    n: Annotated[int | None, typer.Option(help="How many images it rests on.", show_default="unknown")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the references.", show_default="~/.local/share/evalsvc")
    ] = None,
) -> None:
    """Take over someone else's reference statistics. They are marked as foreign wherever they are used."""
    from evalsvc.tasks.reference_statistics import import_npz

    say(f"{name}: {import_npz(file, name, Settings.load(data_dir=text_of(data_dir)).statistics_path, n)}")
