"""The parameters of a kind of task as data, from the fields of the task, and new suites that explain the parameters.

A new suite is commented YAML. Every parameter has its meaning; optional parameters are commented out at their defaults.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import TextWrapper
from typing import Any

import yaml

from evalsvc.errors import UnknownName
from evalsvc.spec import catalog
from evalsvc.spec.bounds import MAX_ID

TASK_NAME = "name"
"""Name of the parameter that every kind of task has, and whose default is the kind."""

_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}
_FORMATS = {"path": "path", "asset": "asset or path"}
_PLURALS = {"text": "texts", "asset or path": "assets or paths"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a task, or one key of a parameter that is a mapping."""

    name: str
    type: str
    """Type in words, such as `integer, 1 to 4,096`."""
    required: bool
    default: Any
    """Default as JSON; None if the parameter is required."""
    meaning: str
    """Docstring of the field, on one line."""
    schema: Mapping[str, Any]
    """JSON schema of the values."""
    keys: tuple[Parameter, ...] = ()
    """Keys of the mapping, or of each mapping in the list, that the parameter holds."""

    def to_json(self) -> dict[str, Any]:
        """Return the parameter as `evalsvc tasks KIND --format json` prints it."""
        document = {"name": self.name, "type": self.type, "required": self.required, "default": self.default}
        keys = {"keys": [key.to_json() for key in self.keys]} if self.keys else {}
        return document | {"meaning": self.meaning} | keys


def task_parameters(kind: str) -> tuple[Parameter, ...]:
    """Return the parameters of a kind of task in the order in which the task declares them."""
    schema = catalog.load("tasks", kind).model_json_schema()
    meaning = "First half of the names of the task's metrics."
    named: dict[str, Any] = {"required": False, "default": kind, "meaning": meaning}
    parameters = _parameters(schema, schema.get("$defs", {}))
    return tuple(replace(each, **(named if each.name == TASK_NAME else {})) for each in parameters)


def _parameters(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Parameter]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        mapping = _mapping(field, definitions)
        yield Parameter(
            name,
            type_in_words(field),
            name in required,
            field.get("default"),
            " ".join(field.get("description", "").split()),
            field,
            tuple(_parameters(mapping, definitions)) if mapping else (),
        )


def _mapping(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if "$ref" in schema:
        mapping: Mapping[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
        return mapping
    parts = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    return next((inner for part in parts if (inner := _mapping(part, definitions))), None)


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema admits, in words: `integer, 1 to 4,096, or `null``."""
    if "anyOf" in schema:
        return ", or ".join(map(type_in_words, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        choices = [f"`{value}`" for value in schema.get("enum", [schema.get("const")])]
        return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    if "$ref" in schema or schema.get("type") == "object":
        return "mapping"
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])} {_plural(type_in_words(schema['prefixItems'][0]))}"
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        size = f"{least:,} to {most:,} " if most and least else f"up to {most:,} " if most else ""
        return f"list of {size}{_plural(type_in_words(schema.get('items', {})))}"
    word = _FORMATS.get(schema.get("format", "")) or _WORDS.get(schema.get("type", ""), "any value")
    return ", ".join(filter(None, [word, _range(schema)]))


def _plural(words: str) -> str:
    if words.startswith("`"):
        return f"values, each {words}"
    word, comma, rest = words.partition(",")
    return f"{_PLURALS.get(word, f'{word}s')}{comma}{rest}"


def _range(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if most is not None and most >= MAX_ID:
        most = None  # the range of an integer, which no reader needs
    if least is not None and most is not None:
        return f"{_number(least)} to {_number(most)}"
    bounds = [("at least", least), ("above", schema.get("exclusiveMinimum")), ("at most", most)]
    bounds.append(("below", schema.get("exclusiveMaximum")))
    return " and ".join(f"{words} {_number(bound)}" for words, bound in bounds if bound is not None)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def placeholder(name: str, schema: Mapping[str, Any]) -> Any:
    """Return a placeholder of the type of a schema that says what belongs there."""
    if "anyOf" in schema:
        return placeholder(name, schema["anyOf"][0])
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "array":
        return [placeholder(name, schema.get("items", {}))]
    if schema.get("type") in ("integer", "number"):
        return schema.get("minimum", 1)
    if schema.get("type") == "boolean":
        return False
    return f"/path/to/{name}"


PLACEHOLDER = "/path/to/"
"""Prefix of the paths that the author of a new suite must replace."""

WIDTH = 100

_TASKS = "tasks:\n"
_DESCRIPTION = "description: What this suite measures, in a line.\n"
_PATHS = f"""\
# What to evaluate of a checkpoint. Replace every path that begins with {PLACEHOLDER} by your own: an absolute
# path, a path relative to this file, or datasets:NAME for a file in the folder EVALSVC_DATASETS.
# Then run: evalsvc suites check FILE
"""

_DEFAULTS = "# A line such as `#limit: null` shows a parameter's default. Remove the `#` to set another value.\n"
_HEADLINE = """\
# Up to six metrics that tables show first, such as [NAME/text].
#headline: []
"""

HEAD, BRIEF_HEAD = _PATHS + _DEFAULTS + _DESCRIPTION + _HEADLINE + _TASKS, _PATHS + _DESCRIPTION + _TASKS


def new_suite(kinds: Sequence[str], values: Mapping[str, object] | None = None, *, brief: bool = False) -> str:
    """Return the YAML of a suite with one task of each kind, with `values` of parameters for every task that has them;
    `brief` leaves out parameters with defaults."""
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
            value = example.get(parameter.name, placeholder(parameter.name, parameter.schema))
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
    for key in () if brief else parameter.keys:
        default = "; required" if key.required else f"; default {inline_yaml(key.default)}"
        paragraphs.append(f"- {key.name}: {key.meaning} ({key.type}{default})")
    wrapper = TextWrapper(WIDTH - 6, break_long_words=False, break_on_hyphens=False)
    for paragraph in paragraphs:
        wrapper.initial_indent = "  " if paragraph.startswith("- ") else ""
        wrapper.subsequent_indent = 2 * wrapper.initial_indent
        yield from (f"    # {line}" for line in wrapper.wrap(paragraph))


def _setting(name: str, value: object) -> Iterator[str]:
    text: str = yaml.dump({name: value}, Dumper=_Indented, sort_keys=False, allow_unicode=True, width=WIDTH)
    return (f"    {line}" for line in text.splitlines())


class _Indented(yaml.SafeDumper):
    """A YAML writer that indents list items further than their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)
