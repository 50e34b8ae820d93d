"""`evalsvc items`: results of an evaluation per item."""

from __future__ import annotations

from typing import Annotated

import typer

from evalsvc.cli.answers import flat, print_one, print_rows, printed_to
from evalsvc.cli.lazy_group import CommandGroup
from evalsvc.cli.options import EvaluationId, Form, Output, Url, connect
from evalsvc.cli.terminal import print_table, say, write_rows
from evalsvc.spec.documents import Items

commands = typer.Typer()
items_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Fetch results per item: per image, caption or question."
)
commands.add_typer(items_app, name="items")

Task = Annotated[str | None, typer.Option(help="Show only this task.", show_default="all")]

LONGEST = 60
"""Most characters of a cell in the table. CSV and JSON have the whole value."""


@items_app.command("list")
def list_tables(
    evaluation: EvaluationId, task: Task = None, form: Form = "table", output: Output = None, url: Url = None
) -> None:
    """List the tasks of an evaluation that have results per item, with their columns."""
    with connect(url) as client, printed_to(output):
        results = client.items(evaluation, task=task)
        rows = [
            {"task": name, "items": len(items), "columns": ", ".join(_columns(items))}
            for name, items in results.items.items()
            if items
        ]
        nothing = f"evaluation {evaluation} has no results per item; its state is {results.state}"
        print_rows(rows, form, "tasks", nothing)


@items_app.command("get")
def get_items(
    evaluation: EvaluationId,
    task: Task = None,
    benchmark: Annotated[str | None, typer.Option(help="Show only this benchmark.", show_default="all")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Show only this column; repeat for several.", show_default="all")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Most rows of each task in the table; CSV and JSON have every row.")
    ] = 20,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Fetch the results per item of the tasks of an evaluation that succeeded."""
    with connect(url) as client, printed_to(output):
        results = client.items(evaluation, task=task, benchmark=benchmark, columns=column or ())
        if form == "csv":
            _write_csv(results)
        else:
            print_one(results, form, lambda items: print_items(items, limit))


def _columns(items: list[dict[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for item in items for name in item))


def print_items(results: Items, limit: int) -> None:
    """Print the first items of each task as a table, with long values cut."""
    for task, items in results.items.items():
        say(f"{task}: {len(items):,} items")
        columns = _columns(items)
        rows = [[_cell(item.get(name)) for name in columns] for item in items[:limit]]
        if rows:
            print_table(columns, rows)
        if len(items) > limit:
            say(f"the first {limit:,} are shown; --format csv --output FILE writes all")


def _write_csv(results: Items) -> None:
    """Print a line of CSV per item, with the name of the task and the columns of all tasks."""
    columns = list(dict.fromkeys(name for items in results.items.values() for name in _columns(items)))
    write_rows(
        [
            {"task": task, **flat({key: item.get(key) for key in columns})}
            for task, items in results.items.items()
            for item in items
        ]
    )


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
