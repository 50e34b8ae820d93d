"""The parameters of a kind of task as data: name, type in words, default and meaning, from the fields of the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    parameters = _parameters(schema, schema.get("$defs", {}))
    return tuple(
        Parameter(
            TASK_NAME, parameter.type, False, kind, "First half of the names of the task's metrics.", parameter.schema
        )
        if parameter.name == TASK_NAME
        else parameter
        for parameter in parameters
    )


def placeholder(parameter: Parameter) -> Any:
    """Return a placeholder of the parameter's type that says what belongs there."""
    return _placeholder(parameter.name, parameter.schema)


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
        return _list_in_words(schema)
    word = _FORMATS.get(schema.get("format", "")) or _WORDS.get(schema.get("type", ""), "any value")
    return ", ".join(filter(None, [word, _range(schema)]))


def _list_in_words(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])} {_plural(type_in_words(schema['prefixItems'][0]))}"
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    size = f"{least:,} to {most:,} " if most and least else f"up to {most:,} " if most else ""
    return f"list of {size}{_plural(type_in_words(schema.get('items', {})))}"


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
    above = schema.get("exclusiveMinimum")
    below = schema.get("exclusiveMaximum")
    bounds = [("at least", least), ("above", above), ("at most", most), ("below", below)]
    return " and ".join(f"{words} {_number(bound)}" for words, bound in bounds if bound is not None)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _placeholder(name: str, schema: Mapping[str, Any]) -> Any:
    if "anyOf" in schema:
        return _placeholder(name, schema["anyOf"][0])
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "array":
        return [_placeholder(name, schema.get("items", {}))]
    if schema.get("type") in ("integer", "number"):
        return schema.get("minimum", 1)
    if schema.get("type") == "boolean":
        return False
    return f"/path/to/{name}"
