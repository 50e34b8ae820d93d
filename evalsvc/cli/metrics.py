"""`evalsvc metrics`: what the metrics are, for people."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evalsvc.cli.terminal import print_table, say
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
            help="A metric's name, such as captions/text or arc_easy/acc, or a pattern such as '*unigram*'.",
            show_default="all, in a table",
        ),
    ] = None,
    output: Annotated[
        Literal["text", "markdown"],
        typer.Option("--format", help="`markdown` prints docs/reference/metrics.md."),
    ] = "text",
) -> None:
    """Show how metrics are defined: formula, unit, items, standard error, and how two checkpoints are compared."""
    definitions = DEFINITIONS if pattern is None else find_definitions(pattern)
    if not definitions:
        hint = "any other name behind a benchmark's is a metric of lm-eval; '<metric>' shows what is known of it"
        raise UnknownName.among("metric", pattern or "", plain_names(), hint)
    if output == "markdown":
        say(page().rstrip("\n") if pattern is None else sections(definitions))
    elif pattern is None:
        print_table(
            ["task", "metric", "unit", "better", "value"],
            [
                [definition.kind, definition.title, definition.unit, definition.direction, definition.formula]
                for definition in definitions
            ],
        )
    else:
        say("\n\n".join(map(_described, definitions)))


def _described(definition: Definition) -> str:
    lines = [f"{definition.title}  (task {definition.kind})", f"  {definition.formula}"]
    for label, text in facts(definition):
        lines.append(f"  {label}: {text}" + (f", {ERRORS[text]}" if text in ERRORS else ""))
    return "\n".join(lines)
