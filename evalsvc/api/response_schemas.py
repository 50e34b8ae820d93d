"""The JSON schemas of answers that are not documents, and of bodies that a route reads itself."""

from __future__ import annotations

from evalsvc.api.json_schema import TEXT, Schema, has, one_of, or_null

STATE = one_of("queued", "running", "succeeded", "partly_failed", "failed", "cancelled")

DIRECTION = one_of("lower", "higher", "none")

EVENT = {
    **has(
        event=one_of("state", "task", "interim", "progress", "end"),
        data={**TEXT, "contentMediaType": "application/json"},
    ),
    "description": "One of the stream; `data` is JSON, an object.",
}

SUITE_INPUT: Schema = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "description": or_null(TEXT),
        "tasks": {"type": "array", "minItems": 1, "items": has(kind=TEXT)},
    },
}
"""The body that keeps a suite; a task's kind has its own parameters."""
