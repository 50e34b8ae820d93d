"""`evalsvc completions`: texts that the checkpoints of a run generate from fixed prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from evalsvc.cli.options import Form, Output, RunArgument, Url, connect
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.terminal import one_line, say
from evalsvc.spec.documents.items import Completion, StepCompletions

commands = typer.Typer()


@commands.command()
def completions(
    run: RunArgument,
    prompt: Annotated[
        str | None, typer.Option(help="Show only prompts that contain this text.", show_default="all")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Show only this variant of the weights.", show_default="all")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also show seeded completions.")] = False,
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


COMPLETION_COLUMNS = ("ids", "image", "seq-rep-4", "base loss", "of ids", "kept", "edits")


def print_completions(steps: Sequence[StepCompletions], everything: bool) -> None:
    """Print the completions of each prompt, a line each: numbers, and the text on one line.

    Columns that no line of a prompt has are left out. Without `everything`, print greedy completions only.
    """
    lines: dict[tuple[str, str], dict[str, tuple[Mapping[str, str], str]]] = {}
    for step in steps:
        for item in step.completions:
            if item.way != "greedy" and not everything:
                continue
            of_prompt = lines.setdefault((step.task, item.prompt), {})
            if item.base is not None:
                of_prompt[_completion_label("base", "raw", item.way)] = _base_numbers(item), item.base
            of_prompt[_completion_label(f"step {step.step}", step.variant, item.way)] = (
                _sampled_numbers(item),
                item.text,
            )
    for (_, prompt), completions in lines.items():
        say(prompt)
        _print_answers_to(completions)
        say()


def _print_answers_to(completions: Mapping[str, tuple[Mapping[str, str], str]]) -> None:
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


def _sampled_numbers(item: Completion) -> dict[str, str]:
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
    loss = f"{nll / scored:.2f}" if nll is not None and scored else ""
    return {"base loss": loss, "of ids": _shown(scored)}


def _completion_label(what: str, variant: str, way: str) -> str:
    return " ".join([what, *([variant] if variant != "raw" else []), *([way] if way != "greedy" else [])])
