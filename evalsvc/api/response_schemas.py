"""The JSON schemas of answers that are not documents, and of bodies that a route reads itself."""

from __future__ import annotations

from evalsvc.api.json_schema import TEXT, Schema, has, or_null

SUITE_INPUT: Schema = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "description": or_null(TEXT),
        "tasks": {"type": "array", "minItems": 1, "items": has(kind=TEXT)},
    },
}
"""The body that keeps a suite; a task's kind has its own parameters."""
