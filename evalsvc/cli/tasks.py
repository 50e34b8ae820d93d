"""`evalsvc tasks`: the kinds of tasks that a suite may have, and their parameters."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evalsvc.cli.terminal import print_table, say, say_json
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


@commands.command()
def tasks(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="A kind of task, such as loss.", show_default="all, in a table")
    ] = None,
    output: Annotated[
        Literal["text", "json", "markdown"],
        typer.Option("--format", help="`markdown` is the page docs/reference/tasks.md."),
    ] = "text",
) -> None:
    """Show the kinds of tasks that a suite may have, or the parameters, metrics and needs of one kind."""
    if kind is None:
        _print_all(output)
    elif output == "json":
        say_json(describe_task(kind).to_json())
    elif output == "markdown":
        say(section(describe_task(kind)))
    else:
        _print_task(describe_task(kind))


def _print_all(output: str) -> None:
    if output == "markdown":
        say(page().rstrip("\n"))
    elif output == "json":
        say_json([{"kind": kind, "measures": what, "needs": needs} for kind, what, needs in task_summaries()])
    else:
        print_table(["kind", "measures", "needs"], list(task_summaries()))
        say("parameters and metrics of one kind: evalsvc tasks KIND; a suite of them: evalsvc suites new --task KIND")


def _print_task(task: TaskDescription) -> None:
    say(f"{task.kind}: {task.measures}")
    if task.about:
        say(f"\n{task.about}")
    if task.needs:
        say(f"\nneeds: {task.needs}")
    print_table(["parameter", "type", "default", "meaning"], [row for one in task.parameters for row in _rows(one, "")])
    if task.metrics:
        print_table(["metric", "value"], task.metrics)


def _rows(parameter: Parameter, prefix: str) -> list[list[str]]:
    name = prefix + parameter.name
    row = [name, parameter.type.replace("`", ""), shown_default(parameter), parameter.meaning]
    return [row, *(below for key in parameter.keys for below in _rows(key, f"{name}."))]
