"""Descriptions of the kinds of tasks: a table of all, one kind in full, and the page `docs/reference/tasks.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from evalsvc.errors import EvalsvcError
from evalsvc.metrics.definitions import DEFINITIONS
from evalsvc.spec import catalog
from evalsvc.spec.new_suite import inline_yaml, new_suite
from evalsvc.spec.parameters import TASK_NAME, Parameter, task_parameters

WIDTH = 120

INTRODUCTION = """\
A suite is a list of tasks. This page has every kind of task: what it measures, what it needs, its parameters and its \
metrics. `evalsvc tasks KIND` shows one kind on the terminal, and `evalsvc suites new --task KIND` writes a suite with \
every parameter explained. An example is the output of `evalsvc suites new --task KIND --brief`; `evalsvc suites check \
FILE` says what is wrong or missing in a suite.

A default in brackets is what the task finds for itself where the parameter is `null`. A path is absolute, relative to \
the suite's file, or `datasets:NAME` for a file in the folder `EVALSVC_DATASETS`. An asset is named as in \
`evalsvc assets list`."""


@dataclass(frozen=True)
class TaskDescription:
    """The description of a kind of task for readers."""

    kind: str
    measures: str
    """First paragraph of the task's docstring."""
    about: str
    """Other paragraphs of the docstring; empty if there are none."""
    needs: str
    """Inputs that the suite's author provides; empty if the task does not say."""
    parameters: tuple[Parameter, ...]
    metrics: tuple[tuple[str, str], ...]
    """Name and formula of each metric, without the prefix `<task>/` or `<benchmark>/`; empty for a plug-in's task."""

    def to_json(self) -> dict[str, Any]:
        """Return what `evalsvc tasks KIND --format json` prints."""
        return {
            "kind": self.kind,
            "measures": self.measures,
            "about": self.about,
            "needs": self.needs,
            "parameters": [parameter.to_json() for parameter in self.parameters],
            "metrics": [{"name": name, "formula": formula} for name, formula in self.metrics],
        }


def describe_task(kind: str) -> TaskDescription:
    """Describe a kind of task, built in or installed. Needs no torch, unless a plug-in does.

    Raises:
        UnknownName: no task has this kind.
        MissingPackage: the task needs a package that is not installed.
    """
    task = catalog.load("tasks", kind)
    measures, _, about = (task.__doc__ or "").strip().partition("\n\n")
    metrics = tuple((definition.title, definition.formula) for definition in DEFINITIONS if definition.kind == kind)
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


def page() -> str:
    """Return `docs/reference/tasks.md`, which describes the tasks that come with evalsvc."""
    tasks = [describe_task(kind) for kind in sorted(catalog.COMPONENTS["tasks"])]
    rows = [f"| [`{task.kind}`](#{task.kind}) | {_cell(task.measures)} | {_cell(task.needs)} |" for task in tasks]
    table = "\n".join(["| kind | measures | needs |", "|---|---|---|", *rows])
    introduction = "\n\n".join(map(_filled, INTRODUCTION.split("\n\n")))
    return "\n\n".join(["# Tasks", introduction, table, *map(section, tasks)]) + "\n"


def section(task: TaskDescription) -> str:
    """Return the section of the page about one kind of task."""
    paragraphs = [f"## {task.kind}", task.measures, *map(_filled, filter(None, task.about.split("\n\n")))]
    if task.needs:
        paragraphs.append(f"Needs: {task.needs}.")
    rows = [row for parameter in task.parameters for row in _rows(parameter)]
    paragraphs.append("\n".join(["| parameter | type | default | meaning |", "|---|---|---|---|", *rows]))
    if task.metrics:
        names = "\n".join(f"- {', '.join(f'`{name}`' for name in title.split(', '))}" for title, _ in task.metrics)
        paragraphs.append(f"Metrics, [defined in full](metrics.md#task-{task.kind}):\n\n{names}")
    example = new_suite([task.kind], brief=True).rstrip("\n")
    paragraphs.append(f"A suite with this task:\n\n```yaml suite\n{example}\n```")
    return "\n\n".join(paragraphs)


def shown_default(parameter: Parameter) -> str:
    """Return a parameter's default as a suite writes it."""
    return "required" if parameter.required else inline_yaml(parameter.default)


def _rows(parameter: Parameter, prefix: str = "") -> Iterator[str]:
    default = "required" if parameter.required else f"`{inline_yaml(parameter.default)}`"
    if parameter.name == TASK_NAME and not prefix:
        default = "the kind"
    if len(default) > WIDTH:
        default = "see the meaning"
    cells = (f"`{prefix}{parameter.name}`", parameter.type, default, parameter.meaning)
    yield f"| {' | '.join(map(_cell, cells))} |"
    for key in parameter.keys:
        yield from _rows(key, f"{prefix}{parameter.name}.")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
