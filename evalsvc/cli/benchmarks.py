"""`evalsvc benchmarks`: list the benchmarks of lm-eval, and fetch their data.

Modules that import lm-eval are imported when a command runs, since lm-eval is installed on workers only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.options import Form, Output
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.terminal import say
from evalsvc.config import Settings

commands = typer.Typer()
benchmarks_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="List and prepare lm-eval's benchmarks, for tasks of kind language."
)
commands.add_typer(benchmarks_app, name="benchmarks")

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
