"""Text of docs/reference/tasks.md: a table of the kinds of tasks, and each kind in full."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from evalsvc.cli.tasks import TaskDescription, describe_task, shown_default
from evalsvc.metrics.definitions import SAME_METRICS
from evalsvc.spec import catalog
from evalsvc.spec.parameters import TASK_NAME, Parameter, new_suite

WIDTH = 120

INTRODUCTION = """\
A suite is a list of tasks. This page has every kind of task: what it measures, what it needs, its parameters and its \
metrics. `evalsvc tasks KIND` shows one kind on the terminal, and `evalsvc suites new --task KIND` writes a suite with \
every parameter explained. An example is the output of `evalsvc suites new --task KIND --brief`; `evalsvc suites check \
FILE` says what is wrong or missing in a suite.

A default in brackets is what the task finds for itself where the parameter is `null`. A path is absolute, relative to \
the suite's file, or `datasets:NAME` for a file in the folder `EVALSVC_DATASETS`. An asset is named as in \
`evalsvc assets list`."""


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
        paragraphs.append(
            f"Metrics, [defined in full](metrics.md#task-{SAME_METRICS.get(task.kind, task.kind)}):\n\n{names}"
        )
    example = new_suite([task.kind], brief=True).rstrip("\n")
    paragraphs.append(f"A suite with this task:\n\n```yaml suite\n{example}\n```")
    return "\n\n".join(paragraphs)


def _rows(parameter: Parameter, prefix: str = "") -> Iterator[str]:
    default = shown_default(parameter) if parameter.required else f"`{shown_default(parameter)}`"
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
