"""New suites as commented YAML. Every parameter has its meaning; optional parameters are commented out at their
defaults."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

import yaml

from evalsvc.errors import UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.parameters import TASK_NAME, Parameter, placeholder, task_parameters

PLACEHOLDER = "/path/to/"
"""Prefix of the paths that the author of a new suite must replace."""

WIDTH = 100

_PATHS = f"""\
# What to evaluate of a checkpoint. Replace every path that begins with {PLACEHOLDER} by your own: an absolute
# path, a path relative to this file, or datasets:NAME for a file in the folder EVALSVC_DATASETS.
# Then run: evalsvc suites check FILE
"""

_DEFAULTS = """\
# A line such as `#limit: null` shows a parameter's default. Remove the `#` to set another value.
"""

_DESCRIPTION = """\
description: What this suite measures, in a line.
"""

_HEADLINE = """\
# Up to six metrics that tables show first, such as [NAME/text].
#headline: []
"""

_TASKS = """\
tasks:
"""

HEAD, BRIEF_HEAD = _PATHS + _DEFAULTS + _DESCRIPTION + _HEADLINE + _TASKS, _PATHS + _DESCRIPTION + _TASKS


def new_suite(kinds: Sequence[str], values: Mapping[str, object] | None = None, *, brief: bool = False) -> str:
    """Return the YAML of a suite with one task of each kind; `brief` leaves out parameters with defaults.

    `values` are values of parameters, each for every task that has a parameter of that name.
    """
    values = values or {}
    known = {parameter.name for kind in kinds for parameter in task_parameters(kind)} - {TASK_NAME}
    for name in values:
        if name not in known:
            raise UnknownName.among("parameter", name, known, f"`evalsvc tasks {kinds[0]}` explains the parameters")
    seen: Counter[str] = Counter()
    tasks = []
    for kind in kinds:
        seen[kind] += 1
        tasks.append(_new_task(kind, kind if seen[kind] == 1 else f"{kind}_{seen[kind]}", values, brief=brief))
    return (BRIEF_HEAD if brief else HEAD) + "\n".join(tasks)


def _new_task(kind: str, name: str, values: Mapping[str, object], *, brief: bool) -> str:
    example = {**getattr(catalog.load("tasks", kind), "example", {}), **values}
    lines, defaults = [f"  - kind: {kind}"], ["    # ── Defaults: nothing below has to be changed ──"]
    for parameter in task_parameters(kind):
        if parameter.name == TASK_NAME:
            lines += [*_comment(parameter, brief=brief), *_setting(parameter.name, name)]
        elif parameter.name in example or parameter.required:
            value = example.get(parameter.name, placeholder(parameter))
            lines += [*_comment(parameter, brief=brief), *_setting(parameter.name, value)]
        elif not brief:
            defaults += [*_comment(parameter), f"    #{parameter.name}: {inline_yaml(parameter.default)}"]
    return "\n".join(lines if brief else lines + defaults) + "\n"


def inline_yaml(value: object) -> str:
    """Return a JSON value as YAML on one line, with quotes where YAML needs them."""
    if isinstance(value, list):
        return f"[{', '.join(map(inline_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {inline_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum() and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _comment(parameter: Parameter, *, brief: bool = False) -> Iterator[str]:
    paragraphs = [f"{parameter.meaning} ({parameter.type})".replace("`null`", "null")]
    paragraphs += (
        [] if brief else [f"- {key.name}: {key.meaning} ({key.type}{_default_of(key)})" for key in parameter.keys]
    )
    for paragraph in paragraphs:
        indent = "  " if paragraph.startswith("- ") else ""
        yield from (
            f"    # {line}"
            for line in wrap(
                paragraph,
                WIDTH - 6,
                initial_indent=indent,
                subsequent_indent=indent * 2,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _default_of(key: Parameter) -> str:
    return "; required" if key.required else f"; default {inline_yaml(key.default)}"


def _setting(name: str, value: object) -> Iterator[str]:
    text: str = yaml.dump({name: value}, Dumper=_Indented, sort_keys=False, allow_unicode=True, width=WIDTH)
    return (f"    {line}" for line in text.splitlines())


class _Indented(yaml.SafeDumper):
    """A YAML writer that indents list items further than their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)
