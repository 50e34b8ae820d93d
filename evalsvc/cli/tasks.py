"""`evalsvc tasks` and `metrics`: kinds of tasks with their parameters, and definitions of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import Argument

from evalsvc.cli.options import Form, Output
from evalsvc.cli.printer import print_rows, printed_to
from evalsvc.cli.terminal import print_table, say, say_json, write_rows
from evalsvc.errors import EvalsvcError, UnknownName
from evalsvc.metrics.definitions import (
    DEFINITIONS,
    ERRORS,
    ITEMS,
    OF_METRIC,
    Definition,
    Range,
    definitions_of,
    find_definitions,
    plain_names,
)
from evalsvc.spec import catalog
from evalsvc.spec.parameters import Parameter, inline_yaml, task_parameters

commands = typer.Typer()

PARAMETER_COLUMNS = ("parameter", "type", "default", "meaning")


@dataclass(frozen=True)
class TaskDescription:
    kind: str
    measures: str
    """First paragraph of the task's docstring."""
    about: str
    needs: str
    """Inputs that the suite's author provides; empty if the task does not say."""
    parameters: tuple[Parameter, ...]
    metrics: tuple[tuple[str, str], ...]
    """Name and formula of each metric, without the prefix `<task>/` or `<benchmark>/`; empty for a plug-in's task."""

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "parameters": [parameter.to_json() for parameter in self.parameters],
            "metrics": [{"name": name, "formula": formula} for name, formula in self.metrics],
        }


def describe_task(kind: str) -> TaskDescription:
    """Describe a kind of task, built in or installed. Needs no torch, unless a plug-in does."""
    task = catalog.load("tasks", kind)
    measures, _, about = (task.__doc__ or "").strip().partition("\n\n")
    metrics = tuple((definition.all_names, definition.formula) for definition in definitions_of(kind))
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in about.split("\n\n"))
    return TaskDescription(kind, " ".join(measures.split()), text, task.needs, task_parameters(kind), metrics)


def task_summaries() -> Iterator[tuple[str, str, str]]:
    """Yield (kind, measures, needs) of each task. A plug-in that cannot be imported has its error instead."""
    for kind in catalog.names("tasks"):
        try:
            task = describe_task(kind)
            yield kind, task.measures, task.needs
        except EvalsvcError as error:
            yield kind, "", error.message


@commands.command()
def tasks(
    kind: Annotated[
        str | None, Argument(metavar="KIND", help="Kind of task, such as loss.", show_default="all, in a table")
    ] = None,
    form: Form = "table",
    output: Output = None,
) -> None:
    """Show the kinds of tasks that a suite may have, or the parameters, metrics and needs of one kind."""
    with printed_to(output):
        if kind is None:
            rows = [{"kind": kind, "measures": measures, "needs": needs} for kind, measures, needs in task_summaries()]
            if form == "json":
                say_json(rows)
            elif form == "csv":
                write_rows(rows)
            else:
                print_table(list(rows[0]), [list(row.values()) for row in rows])
                say("parameters and metrics of a kind: evalsvc tasks KIND; a new suite: evalsvc suites new --task KIND")
            return
        task = describe_task(kind)
        parameters = [row for parameter in task.parameters for row in _rows(parameter, "")]
        if form == "json":
            say_json(task.to_json())
        elif form == "csv":
            write_rows([dict(zip(PARAMETER_COLUMNS, row, strict=True)) for row in parameters])
        else:
            say(f"{task.kind}: {task.measures}")
            if task.about:
                say(f"\n{task.about}")
            if task.needs:
                say(f"\nneeds: {task.needs}")
            print_table(PARAMETER_COLUMNS, parameters)
            if task.metrics:
                print_table(["metric", "value"], task.metrics)


def shown_default(parameter: Parameter) -> str:
    """Return a parameter's default as a suite writes it."""
    return "required" if parameter.required else inline_yaml(parameter.default)


def _rows(parameter: Parameter, prefix: str) -> list[list[str]]:
    name = prefix + parameter.name
    row = [name, parameter.type.replace("`", ""), shown_default(parameter), parameter.meaning]
    return [row, *(below for key in parameter.keys for below in _rows(key, f"{name}."))]


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
            return
        fields = {"task": "kind", "metric": "all_names", "unit": "unit", "better": "direction", "value": "formula"}
        rows = [{name: getattr(item, field) for name, field in fields.items()} for item in definitions]
        print_rows(rows, form, "metrics", "", drop=("unit", "better"))


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
    if definition.title:
        yield "in words", re.sub(r"\$(\w+)", r"<\1>", definition.title)
    if definition.least > 1:
        yield "least", f"{definition.least:,} items"
    if definition.estimator:
        yield "estimator", definition.estimator
    if definition.source:
        yield "source", definition.source


def _described(definition: Definition) -> str:
    lines = [f"{definition.all_names}  (task {definition.kind})", f"  {definition.formula}"]
    for label, text in facts(definition):
        lines.append(f"  {label}: {text}" + (f", {ERRORS[text]}" if text in ERRORS else ""))
    return "\n".join(lines)
