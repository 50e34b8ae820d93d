"""JSON schemas of what the routes answer with, put together from a few words."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

WORDS = ["NaN", "Infinity", "-Infinity"]
"""Numbers that JSON has no words for."""

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ID: Schema = {"type": "integer", "minimum": 1}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
FINITE: Schema = {"type": "number"}
NUMBER: Schema = {"anyOf": [{"type": "number"}, {"type": "string", "enum": WORDS}]}
ANYTHING: Schema = {}
FIELDS: Schema = {"type": "object"}
"""An object with whatever fields."""


def closed(**properties: Schema) -> Schema:
    """An object that has these properties and no others."""
    return {**has(**properties), "additionalProperties": False}


def has(**properties: Schema) -> Schema:
    """An object that has these properties, and perhaps more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def alike(schema: Schema, *names: str) -> dict[str, Schema]:
    """Properties of these names, all of one kind."""
    return dict.fromkeys(names, schema)


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def by_name(values: Schema) -> Schema:
    """An object whose values are of one kind, whatever the keys."""
    return {"type": "object", "additionalProperties": values}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}
