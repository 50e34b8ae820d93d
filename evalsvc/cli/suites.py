"""`evalsvc suites`: write a new suite, check one, list those that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalsvc.cli.options import FAILED, Suites, require_folders
from evalsvc.cli.terminal import print_table, say
from evalsvc.config import Settings
from evalsvc.doctor.suite_checks import check_suite_file
from evalsvc.errors import EvalsvcError, InvalidRequest, UnknownName
from evalsvc.files.atomic import write_whole
from evalsvc.spec.new_suite import new_suite
from evalsvc.spec.suite import SHIPPED_SUITES, load_suite, suite_files

commands = typer.Typer()
suites_app = typer.Typer(no_args_is_help=True, help="Write, check and list suites: what is evaluated of a checkpoint.")
commands.add_typer(suites_app, name="suites")


@suites_app.command(name="new")
def write_suite(
    task: Annotated[list[str], typer.Option(help="Kind of task, see `evalsvc tasks`; repeat for several.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write; its stem is the suite's name.", show_default="standard output")
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Leave out the parameters that have a default.")] = False,
) -> None:
    """Write a suite with the given tasks, in which every parameter is explained."""
    text = new_suite(task, brief=brief)
    if output is None:
        say(text.rstrip("\n"))
        return
    if output.exists():
        raise InvalidRequest(f"--output {output}: the file exists; choose another name, or remove the file first")
    require_folders({"--output": output})
    write_whole(output, text.encode(), mode=0o644)
    say(f"wrote {output}; replace the paths in it, then run: evalsvc suites check {output}")


@suites_app.command(name="check")
def check_suite(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A suite's file, or the name of a suite.")],
    suites: Suites = None,
) -> None:
    """Say everything that is wrong with a suite, or missing for it, before anything runs.

    Keys and values are checked, and that data files, assets, packages and benchmarks are there. The exit code is 1 when
    something is wrong or missing.
    """
    settings = Settings.load(suites=suites)
    path = _suite_path(file, settings)
    report = check_suite_file(path, settings)
    for note in report.notes:
        say(note)
    for problem in report.problems:
        say(f"- {problem}")
    if report.problems:
        count = len(report.problems)
        say(f"suite {path.stem}: {count} problem{'s' if count > 1 else ''}")
        raise typer.Exit(FAILED)
    count = len(report.tasks)
    say(f"suite {path.stem}: nothing is wrong or missing in its {count} task{'s' if count > 1 else ''}")


@suites_app.command(name="list")
def list_suites(suites: Suites = None) -> None:
    """Show the suites that are known by name: those that come with evalsvc, and those of the folder of suites."""
    files = suite_files(Settings.load(suites=suites).suites_path)
    print_table(["suite", "tasks", "description", "from"], [_listed(path) for path in files.values()])


def _listed(path: Path) -> list[str]:
    origin = "evalsvc" if path.parent == SHIPPED_SUITES else str(path)
    try:
        suite = load_suite(path)
    except EvalsvcError as error:
        return [path.stem, "", error.message, origin]
    kinds = dict.fromkeys(task.kind for task in suite.tasks)
    return [path.stem, ", ".join(kinds), suite.description.partition(". ")[0], origin]


def _suite_path(file: str, settings: Settings) -> Path:
    if file.endswith((".yaml", ".yml", ".json")):
        return Path(file)
    files = suite_files(settings.suites_path)
    if file not in files:
        raise UnknownName.among("suite", file, files, "a path that ends in .yaml or .json works too")
    return files[file]
