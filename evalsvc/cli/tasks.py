"""`evalsvc tasks`: kinds of tasks, and their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import Argument

from evalsvc.cli.options import Form, Output
from evalsvc.cli.printer import printed_to
from evalsvc.cli.terminal import print_table, say, say_json, write_rows
from evalsvc.errors import EvalsvcError
from evalsvc.metrics.definitions import DEFINITIONS
from evalsvc.spec import catalog
from evalsvc.spec.new_suite import inline_yaml
from evalsvc.spec.parameters import Parameter, task_parameters

commands = typer.Typer()

PARAMETER_COLUMNS = ("parameter", "type", "default", "meaning")


@dataclass(frozen=True)
class TaskDescription:
    """The description of a kind of task for readers."""

    kind: str
    measures: str
    """First paragraph of the task's docstring."""
    about: str
    """Other paragraphs of the docstring; empty if there are none."""
    needs: str
    """Inputs that the suite's author provides; empty if the task does not say."""
    parameters: tuple[Parameter, ...]
    metrics: tuple[tuple[str, str], ...]
    """Name and formula of each metric, without the prefix `<task>/` or `<benchmark>/`; empty for a plug-in's task."""

    def to_json(self) -> dict[str, Any]:
        """Return what `evalsvc tasks KIND --format json` prints."""
        return {
            "kind": self.kind,
            "measures": self.measures,
            "about": self.about,
            "needs": self.needs,
            "parameters": [parameter.to_json() for parameter in self.parameters],
            "metrics": [{"name": name, "formula": formula} for name, formula in self.metrics],
        }


def describe_task(kind: str) -> TaskDescription:
    """Describe a kind of task, built in or installed. Needs no torch, unless a plug-in does."""
    task = catalog.load("tasks", kind)
    measures, _, about = (task.__doc__ or "").strip().partition("\n\n")
    metrics = tuple((definition.title, definition.formula) for definition in DEFINITIONS if definition.kind == kind)
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in about.split("\n\n"))
    return TaskDescription(kind, " ".join(measures.split()), text, task.needs, task_parameters(kind), metrics)


def task_summaries() -> Iterator[tuple[str, str, str]]:
    """Yield (kind, measures, needs) of each task. A plug-in that cannot be imported has its error instead."""
    for kind in catalog.names("tasks"):
        try:
            task = describe_task(kind)
            yield kind, task.measures, task.needs
        except EvalsvcError as error:
            yield kind, "", error.message


@commands.command()
def tasks(
    kind: Annotated[
        str | None, Argument(metavar="KIND", help="Kind of task, such as loss.", show_default="all, in a table")
    ] = None,
    form: Form = "table",
    output: Output = None,
) -> None:
    """Show the kinds of tasks that a suite may have, or the parameters, metrics and needs of one kind."""
    with printed_to(output):
        _show(kind, form)


def _show(kind: str | None, form: str) -> None:
    if kind is None:
        _print_all(form)
    elif form == "json":
        say_json(describe_task(kind).to_json())
    elif form == "csv":
        rows = [row for parameter in describe_task(kind).parameters for row in _rows(parameter, "")]
        write_rows([dict(zip(PARAMETER_COLUMNS, row, strict=True)) for row in rows])
    else:
        _print_task(describe_task(kind))


def _print_all(form: str) -> None:
    rows = [{"kind": kind, "measures": measures, "needs": needs} for kind, measures, needs in task_summaries()]
    if form == "json":
        say_json(rows)
    elif form == "csv":
        write_rows(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
        say("parameters and metrics of a kind: evalsvc tasks KIND; a new suite: evalsvc suites new --task KIND")


def _print_task(task: TaskDescription) -> None:
    say(f"{task.kind}: {task.measures}")
    if task.about:
        say(f"\n{task.about}")
    if task.needs:
        say(f"\nneeds: {task.needs}")
    print_table(PARAMETER_COLUMNS, [row for parameter in task.parameters for row in _rows(parameter, "")])
    if task.metrics:
        print_table(["metric", "value"], task.metrics)


def shown_default(parameter: Parameter) -> str:
    """Return a parameter's default as a suite writes it."""
    return "required" if parameter.required else inline_yaml(parameter.default)


def _rows(parameter: Parameter, prefix: str) -> list[list[str]]:
    name = prefix + parameter.name
    row = [name, parameter.type.replace("`", ""), shown_default(parameter), parameter.meaning]
    return [row, *(below for key in parameter.keys for below in _rows(key, f"{name}."))]
