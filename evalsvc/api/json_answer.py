"""The JSON response of every route, and the description of responses in OpenAPI."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic_core import to_json

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is what `If-None-Match` says that you have: the `ETag` of an earlier answer."}
}
"""The response of routes that answer conditional requests."""


class JsonAnswer(JSONResponse):
    """A document as JSON. A NaN or an infinity becomes a string, never an error."""

    def render(self, content: object) -> bytes:
        return content if isinstance(content, bytes) else rendered(content)


def rendered(content: object) -> bytes:
    """Return content as the bytes of JSON. `JsonAnswer` takes such bytes unchanged, so a caller can cache the bytes."""
    # Eight times as fast as the standard library for numbers, which make up a history.
    return to_json(content, inf_nan_mode="strings")


def answer(kind: Any, description: str, **more: Any) -> dict[str, Any]:
    """Return the description of a response with a document of a type, or of one of the types in a union."""
    return {"model": kind, "description": description, **more}


def or_text(media_type: str, example: str, schema_type: str = "string") -> dict[str, Any]:
    """Return the part of a response's description for a further media type, such as `text/csv`, on request.

    `schema_type` is the JSON schema type of the content that the text represents.
    """
    return {"content": {media_type: {"schema": {"type": schema_type}, "example": example}}}
