"""`evalsvc suites`: write, check and list suites, and upload suites to the service."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.lazy_group import add_group
from evalsvc.cli.options import FAILED, Form, Output, Suites, Url, Yes, complete_suite, connect, require_folders
from evalsvc.cli.printer import print_rows, print_suite_tasks, printed_to, show
from evalsvc.cli.terminal import confirm, say
from evalsvc.cli.wording import counted
from evalsvc.config import Settings
from evalsvc.doctor.suite_checks import check_rules_file, check_suite_file, has_rules
from evalsvc.errors import EvalsvcError, InvalidRequest, UnknownName
from evalsvc.files.atomic import write_whole
from evalsvc.spec.documents import BrokenSuite, Suite
from evalsvc.spec.parameters import PLACEHOLDER, new_suite, task_parameters
from evalsvc.spec.suite import SHIPPED_SUITES, load_suite, suite_files
from evalsvc.spec.yaml_text import YamlError, read_yaml

commands = typer.Typer()
suites_app = add_group(commands, "suites", "Write, check, list and upload suites.")

SuiteArgument = Annotated[str, Argument(metavar="NAME", help="Name of the suite.", autocompletion=complete_suite)]

SUITE_ENDINGS = (".yaml", ".yml", ".json")
MAX_SUITE = 1_000_000


@suites_app.command(name="new")
def write_suite(
    task: Annotated[list[str], Option(help="Kind of task (see `evalsvc tasks`); repeat for several.")],
    output: Annotated[
        Path | None,
        Option(help="File to write; its name without .yaml is the name of the suite.", show_default="standard output"),
    ] = None,
    values: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="NAME=VALUE",
            help="Value of a parameter, such as data=pairs.jsonl, for each task that has the parameter; repeat for "
            "several. A path that is a file or folder here is written as an absolute path.",
            show_default="none",
        ),
    ] = None,
    brief: Annotated[bool, Option("--brief", help="Leave out the parameters that have a default.")] = False,
) -> None:
    """Write a new suite with the given tasks and an explanation of every parameter."""
    paths = {parameter.name for kind in task for parameter in task_parameters(kind) if "path" in parameter.type}
    text = new_suite(task, dict(_parameter_value(value, paths) for value in values or ()), brief=brief)
    if output is None:
        say(text.rstrip("\n"))
        return
    if output.exists():
        raise InvalidRequest(f"--output {output}: the file exists; name another file, or remove the file first")
    require_folders({"--output": output.parent})
    output.parent.mkdir(exist_ok=True)  # of a service's suites, which begins with the first suite
    write_whole(output, text.encode(), mode=0o644)
    first = "replace the paths that begin with " + PLACEHOLDER + ", then " if f": {PLACEHOLDER}" in text else ""
    say(f"wrote {output}; {first}run: evalsvc suites check {output}")


def _parameter_value(assignment: str, paths: Container[str]) -> tuple[str, object]:
    name, sign, text = assignment.partition("=")
    if not sign or not name:
        raise InvalidRequest(f"--set {assignment}: no value is given; write NAME=VALUE, such as data=pairs.jsonl")
    if name in paths and Path(text).exists():
        return name, str(Path(text).absolute())  # relative paths in a suite begin at the suite's file
    try:
        return name, read_yaml(text)
    except YamlError as error:
        raise InvalidRequest(f"--set {assignment}: the value is not valid YAML: {error}; correct the value") from None


@suites_app.command(name="check")
def check_suite(
    files: Annotated[
        list[str], Argument(metavar="FILE", help="File of a suite, or its name, or file of rules of evalsvc gate.")
    ],
    suites: Suites = None,
) -> None:
    """Report everything that is wrong with suites or missing for their tasks, or wrong with rules of evalsvc gate.

    The check covers keys, values, assets, packages and benchmarks, and reads the data files as an evaluation does. A
    note names a file of which only a part was read. The exit code is 1 if something is wrong or missing.
    """
    settings, failed = Settings.load(suites=suites), False
    for file in files:
        path = Path(file)
        if not file.endswith(SUITE_ENDINGS):
            known = suite_files(settings.suites_path)
            if file not in known:
                raise UnknownName.among("suite", file, known, "a path that ends in .yaml or .json works too")
            path = known[file]
        is_suite = not has_rules(path)
        report = check_suite_file(path, settings) if is_suite else check_rules_file(path)
        for line in (*report.notes, *(f"- {problem}" for problem in report.problems)):
            say(line)
        result = f"nothing is wrong or missing in its {counted(report.entries, 'task' if is_suite else 'rule')}"
        if report.problems:
            result, failed = counted(len(report.problems), "problem"), True
        say(f"{'suite' if is_suite else 'rules'} {path.stem}: {result}")
    if failed:
        raise typer.Exit(FAILED)


@suites_app.command(name="list")
def list_suites(
    service: Annotated[bool, Option("--service", help="List the suites of the service instead.")] = False,
    suites: Suites = None,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """List the suites that come with evalsvc and those in the folder --suites, or the suites of the service."""
    rows: list[dict[str, object]] = []
    if service:
        with connect(url) as client:
            for kept in client.suites():
                if isinstance(kept, BrokenSuite):
                    tasks, about, hides = "", kept.error.message, None
                else:
                    tasks, about, hides = ", ".join(kept.tasks), kept.description.partition(". ")[0], kept.shadows
                row = {"suite": kept.name, "tasks": tasks, "description": about, "from": kept.source}
                rows.append({**row, "hides": hides})
    else:
        for path in suite_files(Settings.load(suites=suites).suites_path).values():
            try:
                suite = load_suite(path)
                tasks = ", ".join(dict.fromkeys(task.kind for task in suite.tasks))
                about = suite.description.partition(". ")[0]
            except EvalsvcError as error:
                tasks, about = "", error.message
            origin = "evalsvc" if path.parent == SHIPPED_SUITES else str(path)
            rows.append({"suite": path.stem, "tasks": tasks, "description": about, "from": origin})
    with printed_to(output):
        print_rows(rows, form, "suites", "no suite exists")


@suites_app.command(name="show")
def show_suite(name: SuiteArgument, form: Form = "table", output: Output = None, url: Url = None) -> None:
    """Show a suite of the service with its tasks and all their parameters."""

    def print_suite(suite: Suite) -> None:
        say(f"suite {suite.name} ({suite.source}), digest {suite.digest}")
        if suite.description:
            say(suite.description)
        print_suite_tasks(suite.tasks)

    with connect(url) as client, printed_to(output):
        show(client.suite(name), form, print_suite)


@suites_app.command(name="put")
def put_suite(
    file: Annotated[Path, Argument(help="File of the suite, YAML or JSON.")],
    name: Annotated[str | None, Option(help="Name of the suite.", show_default="the file's, without .yaml")] = None,
    replace_shipped: Annotated[
        bool, Option("--replace-shipped", help="Allow the name of a suite that comes with evalsvc.")
    ] = False,
    url: Url = None,
) -> None:
    """Upload a suite to the service, for plans and posted checkpoints."""
    if file.suffix not in SUITE_ENDINGS or not file.is_file():
        endings = " or ".join(SUITE_ENDINGS)
        raise InvalidRequest(f"{file} is not the file of a suite; give a file that ends in {endings}")
    if (size := file.stat().st_size) > MAX_SUITE:
        raise InvalidRequest(f"{file} has {size:,} bytes, more than the {MAX_SUITE:,} of a suite; shorten the file")
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} cannot be read as text: {error}; give a file in UTF-8") from None
    with connect(url) as client:
        suite = client.put_suite(name or file.stem, text, replace_shipped=replace_shipped)
    say(f"suite {suite.name} is uploaded: {counted(len(suite.tasks), 'task')}, digest {suite.digest[:12]}")


@suites_app.command(name="delete")
def delete_suite(name: SuiteArgument, yes: Yes = False, url: Url = None) -> None:
    """Delete an uploaded suite from the service. Evaluations keep the suite with which they started."""
    confirm(f"delete suite {name} of the service", yes)
    with connect(url) as client:
        deleted = client.delete_suite(name)
    then = "" if deleted.uncovered is None else f"; the name now stands for the suite of the {deleted.uncovered}"
    say(f"suite {deleted.name} is deleted{then}")
