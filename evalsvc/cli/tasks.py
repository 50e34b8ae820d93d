"""`evalsvc tasks`: kinds of tasks, and their parameters."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evalsvc.cli.answers import printed_to
from evalsvc.cli.options import Output
from evalsvc.cli.terminal import print_table, say, say_json, write_rows
from evalsvc.spec.parameters import Parameter
from evalsvc.tasks.reference_page import (
    TaskDescription,
    describe_task,
    page,
    section,
    shown_default,
    task_summaries,
)

commands = typer.Typer()

PARAMETER_COLUMNS = ("parameter", "type", "default", "meaning")


@commands.command()
def tasks(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="Kind of task, such as loss.", show_default="all, in a table")
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json", "markdown"],
        typer.Option("--format", help="Format of the answer; markdown is the page of the documentation."),
    ] = "table",
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
    elif form == "markdown":
        say(section(describe_task(kind)))
    else:
        _print_task(describe_task(kind))


def _print_all(form: str) -> None:
    rows = [{"kind": kind, "measures": measures, "needs": needs} for kind, measures, needs in task_summaries()]
    if form == "markdown":
        say(page().rstrip("\n"))
    elif form == "json":
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


def _rows(parameter: Parameter, prefix: str) -> list[list[str]]:
    name = prefix + parameter.name
    row = [name, parameter.type.replace("`", ""), shown_default(parameter), parameter.meaning]
    return [row, *(below for key in parameter.keys for below in _rows(key, f"{name}."))]
