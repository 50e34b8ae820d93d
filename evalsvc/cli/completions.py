"""`evalsvc completions`: what a run's checkpoints make of fixed prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from evalsvc.cli.answers import print_rows, printed_to
from evalsvc.cli.options import Form, Output, RunArgument, Url, connect
from evalsvc.cli.terminal import one_line, say
from evalsvc.spec.documents.items import Completion, StepCompletions
from evalsvc.spec.documents.reading import read

commands = typer.Typer()


@commands.command()
def completions(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option(help="Only prompts that hold this text.", show_default="all")] = None,
    variant: Annotated[str | None, typer.Option(help="Only these weights.", show_default="all")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show seeded completions, too.")] = False,
    form: Form = "table",
    output: Output = None,
    url: Url = None,
) -> None:
    """Show what a run's checkpoints made of fixed prompts, prompt by prompt: the base first, then a line per step.

    image: ids of images. seq-rep-4: share of 4-grams that repeat. base loss: in nats/token, of the text that it begins
    with, and of how many ids. kept, edits: ids that it begins with like the step before, and the edit distance to it.
    """
    with connect(url) as client:
        steps = client.completions(run, variant=variant, prompt=prompt)
    with printed_to(output):
        if form != "table":
            rows = [
                {"task": step.task, "step": step.step, "variant": step.variant, **row}
                for step in steps
                for row in step.completions
            ]
            columns = dict.fromkeys(name for row in rows for name in row)
            print_rows([{name: row.get(name) for name in columns} for row in rows], form, "completions", "")
        elif steps:
            print_completions(steps, everything)
        else:
            say(f"run {run} has no completions yet; evaluate a suite that has a task of kind completions")


COMPLETION_COLUMNS = ("ids", "image", "seq-rep-4", "base loss", "of ids", "kept", "edits")


def print_completions(steps: Sequence[StepCompletions], everything: bool) -> None:
    """Prompt by prompt, a line each: its numbers, and the text whatever characters the model wrote.

    `kept` and `edits` compare with the step before: how many ids both begin with, and how many must change to make one
    of the other. What no line of a prompt has is no column.
    """
    lines: dict[tuple[str, str], dict[str, tuple[Mapping[str, str], str]]] = {}
    for step in steps:
        for item in (read(Completion, row) for row in step.completions):
            if item.way != "greedy" and not everything:
                continue
            of_prompt = lines.setdefault((step.task, item.prompt), {})
            if item.base is not None:
                of_prompt[_completion_label("base", "raw", item.way)] = _base_numbers(item), item.base
            of_prompt[_completion_label(f"step {step.step}", step.variant, item.way)] = _own_numbers(item), item.text
    for (_, prompt), completions in lines.items():
        say(prompt)
        _print_answers_to(completions)
        say()


def _print_answers_to(completions: Mapping[str, tuple[Mapping[str, str], str]]) -> None:
    """The base's first."""
    columns = [name for name in COMPLETION_COLUMNS if any(numbers.get(name) for numbers, _ in completions.values())]
    rows = [
        (label, [numbers.get(name, "") for name in columns], text)
        for label, (numbers, text) in sorted(completions.items(), key=lambda entry: not entry[0].startswith("base"))
    ]
    if columns:
        rows.insert(0, ("", columns, ""))
    widths = [max(len(cells[place]) for _, cells, _ in rows) for place in range(len(columns))]
    first = max(map(len, completions))
    for label, cells, text in rows:
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        say(f"  {label:{first}}{numbers} │ {one_line(text)}".rstrip())


def _own_numbers(item: Completion) -> dict[str, str]:
    """The columns of a completion; empty where it has no such number."""
    previous = item.previous
    return {
        "ids": _shown(item.drawn),
        "image": _shown(item.image_ids),
        "seq-rep-4": "" if item.seq_rep_4 is None else f"{item.seq_rep_4:.2f}",
        **_judged(item.base_nll, item.base_scored),
        "kept": _shown(None if previous is None else previous.common_prefix),
        "edits": _shown(None if previous is None else previous.edit_distance),
    }


def _base_numbers(item: Completion) -> dict[str, str]:
    ids = None if item.base_ids is None else len(item.base_ids)
    return {"ids": _shown(ids), **_judged(item.base_own_nll, item.base_own_scored)}


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def _judged(nll: float | None, scored: int | None) -> dict[str, str]:
    """The base's loss in nats/token, and on how many ids."""
    loss = f"{nll / scored:.2f}" if nll is not None and scored else ""
    return {"base loss": loss, "of ids": _shown(scored)}


def _completion_label(what: str, variant: str, way: str) -> str:
    return " ".join([what, *([variant] if variant != "raw" else []), *([way] if way != "greedy" else [])])
