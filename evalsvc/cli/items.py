"""`evalsvc items`: results of an evaluation per item."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from evalsvc.cli.options import Form, Output, Url, connect
from evalsvc.cli.printer import Row, flat, printed_to, show
from evalsvc.cli.terminal import print_table, say
from evalsvc.spec.documents import Items

commands = typer.Typer()

LONGEST = 60
"""Most characters of a cell in the table. CSV and JSON have the whole value."""


@commands.command()
def items(
    evaluation: Annotated[int, Argument(metavar="ID", min=1, help="Id of the evaluation.")],
    task: Annotated[str | None, Option(help="Show only this task.", show_default="all")] = None,
    benchmark: Annotated[str | None, Option(help="Show only this benchmark.", show_default="all")] = None,
    column: Annotated[
        list[str] | None, Option(help="Show only this column; repeat for several.", show_default="all")
    ] = None,
    limit: Annotated[int, Option(min=1, help="Most rows of each task in the table; CSV and JSON have every row.")] = 20,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Fetch the results per item of the tasks of an evaluation that succeeded."""
    with connect(url) as client, printed_to(output):
        results = client.items(evaluation, task=task, benchmark=benchmark, columns=column or ())
        show(results, form, lambda results: print_items(results, limit), _csv_rows)


def _columns(items: list[dict[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for item in items for name in item))


def print_items(results: Items, limit: int) -> None:
    """Print the first items of each task as a table, with long values cut."""
    if not any(results.items.values()):
        say(f"evaluation {results.evaluation} has no results per item; its state is {results.state}")
        return
    for task, items in results.items.items():
        say(f"{task}: {len(items):,} items")
        columns = _columns(items)
        rows = [[_cell(item.get(name)) for name in columns] for item in items[:limit]]
        if rows:
            print_table(columns, rows)
        if len(items) > limit:
            say(f"the first {limit:,} are shown; --format csv --output FILE writes all")


def _csv_rows(results: Items) -> list[Row]:
    columns = list(dict.fromkeys(name for items in results.items.values() for name in _columns(items)))
    return [
        {"task": task, **flat({key: item.get(key) for key in columns})}
        for task, items in results.items.items()
        for item in items
    ]


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
