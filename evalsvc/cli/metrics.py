"""`evalsvc metrics`: definitions of the metrics."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evalsvc.cli.answers import print_rows, printed_to
from evalsvc.cli.options import Output
from evalsvc.cli.terminal import say
from evalsvc.errors import UnknownName
from evalsvc.metrics.definitions import DEFINITIONS, ERRORS, Definition, find_definitions, plain_names
from evalsvc.metrics.reference_page import facts, page, sections

commands = typer.Typer()


@commands.command()
def metrics(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            help="Name of a metric, such as captions/text or arc_easy/acc, or a pattern such as '*unigram*'.",
            show_default="all, in a table",
        ),
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json", "markdown"],
        typer.Option("--format", help="Format of the answer; markdown is the page of the documentation."),
    ] = "table",
    output: Output = None,
) -> None:
    """Show the definitions of metrics: formula, unit, items, standard error, and comparison of two checkpoints."""
    definitions = DEFINITIONS if pattern is None else find_definitions(pattern)
    if not definitions:
        hint = "metrics of lm-eval itself, such as <benchmark>/<metric>, are described by: evalsvc metrics '<metric>'"
        raise UnknownName.among("metric", pattern or "", plain_names(), hint)
    with printed_to(output):
        if form == "markdown":
            say(page().rstrip("\n") if pattern is None else sections(definitions))
        elif form == "table" and pattern is not None:
            say("\n\n".join(map(_described, definitions)))
        else:
            print_rows(list(map(_row, definitions)), form, "metrics", "", drop=("unit", "better"))


def _row(definition: Definition) -> dict[str, object]:
    return {
        "task": definition.kind,
        "metric": definition.title,
        "unit": definition.unit,
        "better": definition.direction,
        "value": definition.formula,
    }


def _described(definition: Definition) -> str:
    lines = [f"{definition.title}  (task {definition.kind})", f"  {definition.formula}"]
    for label, text in facts(definition):
        lines.append(f"  {label}: {text}" + (f", {ERRORS[text]}" if text in ERRORS else ""))
    return "\n".join(lines)
