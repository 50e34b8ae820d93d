"""`evalsvc metrics`: definitions of the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import typer
from typer import Argument

from evalsvc.cli.options import Form, Output
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.terminal import say
from evalsvc.errors import UnknownName
from evalsvc.metrics.definitions import (
    DEFINITIONS,
    ERRORS,
    ITEMS,
    OF_METRIC,
    Definition,
    Range,
    find_definitions,
    plain_names,
)

commands = typer.Typer()

BETTER = {
    "lower": "lower is better",
    "higher": "higher is better",
    "none": "no side is better",
    OF_METRIC: f"the better side is {OF_METRIC}",
}

INTERVALS: Mapping[Range, str] = {
    "distance": "not below 0",
    "positive": "of the logarithm, since the numbers behind the value cannot be negative",
    "probability": "of the logarithm, since the numbers behind the value cannot be negative; not above 1",
    "share": "Wilson's where each item is 1 or 0 and counts alone; otherwise between 0 and 1",
}
"""Intervals that differ from Student's, by the range of the metric."""


@commands.command()
def metrics(
    pattern: Annotated[
        str | None,
        Argument(
            metavar="PATTERN",
            help="Name of a metric, such as captions/text or arc_easy/acc, or a pattern such as '*unigram*'.",
            show_default="all, in a table",
        ),
    ] = None,
    form: Form = "table",
    output: Output = None,
) -> None:
    """Show the definitions of metrics: formula, unit, items, standard error, and comparison of two checkpoints."""
    definitions = DEFINITIONS if pattern is None else find_definitions(pattern)
    if not definitions:
        hint = "metrics of lm-eval itself, such as <benchmark>/<metric>, are described by: evalsvc metrics '<metric>'"
        raise UnknownName.among("metric", pattern or "", plain_names(), hint)
    with printed_to(output):
        if form == "table" and pattern is not None:
            say("\n\n".join(map(_described, definitions)))
        else:
            print_rows(list(map(_row, definitions)), form, "metrics", "", drop=("unit", "better"))


def facts(definition: Definition) -> Iterator[tuple[str, str]]:
    """Yield the facts about a metric other than names, kind and formula, as label and text."""
    yield "unit", f"{definition.unit}; {BETTER[definition.direction]}"
    yield "item", definition.item
    if definition.group:
        key = f"; the items name it under `{definition.grouped_by}`" if definition.grouped_by else ""
        yield "one group", f"{definition.group}{key}"
    yield "standard error", definition.error
    if (of := definition.range_in(definition.unit)) != "any":
        yield "interval", INTERVALS[of]
    if definition.pairs == ITEMS:
        yield "two checkpoints", "compared item by item"
    else:
        yield "two checkpoints", f"not compared item by item: {definition.pairs}"
    if definition.companion_of is not None:
        mains = dict.fromkeys(str(definition.main_name(name)) for name in definition.names)
        yield "shown", f"next to {', '.join(f'`{name}`' for name in mains)}; judged by no pattern of the gate's rules"
    if definition.least > 1:
        yield "least", f"{definition.least:,} items"
    if definition.estimator:
        yield "estimator", definition.estimator
    if definition.source:
        yield "source", definition.source


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
