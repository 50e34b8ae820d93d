"""`evalsvc items` and `completions`: results per item, and texts that checkpoints generate from fixed prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.cells import cell_len
from typer import Argument, Option

from evalsvc.cli.options import Form, Output, RunArgument, Url, connect
from evalsvc.cli.printer import Row, flat, print_rows, printed_to, show
from evalsvc.cli.terminal import PIPE, one_line, print_table, say, terminal_width, wrapped
from evalsvc.spec.documents import Items
from evalsvc.spec.documents.results import StepCompletions

commands = typer.Typer()

LONGEST = 60
"""Most characters of a cell in the table. CSV and JSON have the whole value."""

IMAGE_TOKENS = re.compile(r"(?:‹image \d+›){2,}")

LEAST = 40  # characters of a completion: the last numbers before it are left out for it


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


def print_items(results: Items, limit: int) -> None:
    if not any(results.items.values()):
        say(f"evaluation {results.evaluation} has no results per item; its state is {results.state}")
        return
    for task, items in results.items.items():
        say(f"{task}: {len(items):,} items")
        columns = list(dict.fromkeys(name for item in items for name in item))
        rows = [[_cell(item.get(name)) for name in columns] for item in items[:limit]]
        if rows:
            print_table(columns, rows)
        if len(items) > limit:
            say(f"the first {limit:,} are shown; --format csv --output FILE writes all")


def _csv_rows(results: Items) -> list[Row]:
    columns = dict.fromkeys(name for items in results.items.values() for item in items for name in item)
    return [
        {"task": task, **flat({key: item.get(key) for key in columns})}
        for task, items in results.items.items()
        for item in items
    ]


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@commands.command()
def completions(
    run: RunArgument,
    prompt: Annotated[str | None, Option(help="Show only prompts that contain this text.", show_default="all")] = None,
    variant: Annotated[str | None, Option(help="Show only this variant of the weights.", show_default="all")] = None,
    everything: Annotated[bool, Option("--all", help="Also show seeded completions.")] = False,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show the completions of fixed prompts by the checkpoints of a run: for each prompt the base, then the steps.

    Columns: `ids` and `image` are numbers of sampled ids and of image ids among them. `seq-rep-4` is the share of
    repeated 4-grams. `base loss` is the loss of the base on the text before the first image id, in nats/token, over
    `of ids` ids. `kept` and `edits` compare with the step before: length of the common prefix, and edit distance.
    """
    with connect(url) as client:
        steps = client.completions(run, variant=variant, prompt=prompt)
    with printed_to(output):
        if form != "table":
            rows = [
                {"task": step.task, "step": step.step, "variant": step.variant, **completion.model_dump()}
                for step in steps
                for completion in step.completions
            ]
            print_rows(rows, form, "completions", "")
        elif steps:
            print_completions(steps, everything)
        else:
            say(f"run {run} has no completions yet; evaluate a suite that has a task of kind completions")


def print_completions(steps: Sequence[StepCompletions], everything: bool) -> None:
    """Print the completions of each prompt, a line each; without `everything`, the greedy ones only."""
    lines: dict[tuple[str, str], dict[str, tuple[Mapping[str, str], str]]] = {}
    for step in steps:
        for item in step.completions:
            if item.way != "greedy" and not everything:
                continue
            of_prompt = lines.setdefault((step.task, item.prompt), {})
            if item.base is not None:
                ids = None if item.base_ids is None else len(item.base_ids)
                numbers = _numbers(ids, item.base_own_nll, item.base_own_scored)
                of_prompt[_completion_label("base", "raw", item.way)] = numbers, item.base
            numbers = _numbers(item.drawn, item.base_nll, item.base_scored) | {
                "image": _shown(item.image_ids),
                "seq-rep-4": "" if item.seq_rep_4 is None else f"{item.seq_rep_4:.2f}",
                "kept": "" if item.previous is None else str(item.previous.common_prefix),
                "edits": "" if item.previous is None else str(item.previous.edit_distance),
            }
            of_prompt[_completion_label(f"step {step.step}", step.variant, item.way)] = numbers, item.text
    width = terminal_width() or PIPE
    for (_, prompt), completions in lines.items():
        say(prompt)
        names = ("ids", "image", "seq-rep-4", "base loss", "of ids", "kept", "edits")
        columns = [name for name in names if any(numbers.get(name) for numbers, _ in completions.values())]
        first = max(map(len, completions))
        while columns and first + sum(2 + max(5, len(name)) for name in columns) + LEAST > width:
            columns.pop()
        rows = [
            (label, [numbers.get(name, "") for name in columns], text)
            for label, (numbers, text) in sorted(completions.items(), key=lambda entry: not entry[0].startswith("base"))
        ]
        if columns:
            rows.insert(0, ("", columns, ""))
        widths = [max(len(cells[place]) for _, cells, _ in rows) for place in range(len(columns))]
        for label, cells, text in rows:
            shown = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            start = f"  {label:{first}}{shown} │ "
            line = IMAGE_TOKENS.sub(lambda run: f"‹{run[0].count('›')} image tokens›", one_line(text))
            room = max(LEAST, width - len(start))
            for part in [line] if cell_len(line) <= room else wrapped(line, room):
                say(f"{start}{part}".rstrip())
                start = " " * (len(start) - 2) + "│ "
        say()


def _numbers(ids: int | None, nll: float | None, scored: int | None) -> dict[str, str]:
    loss = f"{nll / scored:.2f}" if nll is not None and scored else ""
    return {"ids": _shown(ids), "base loss": loss, "of ids": _shown(scored)}


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def _completion_label(what: str, variant: str, way: str) -> str:
    return " ".join([what, *([variant] if variant != "raw" else []), *([way] if way != "greedy" else [])])
