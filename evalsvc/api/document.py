"""The response of every route: JSON, with what JSON has no words for as strings."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from evalsvc.protocol import number_to_json


class Document(JSONResponse):
    """JSON. A NaN or an infinity from wherever becomes its string and never an error."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except ValueError:
            return super().render(_finite(content))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return number_to_json(content) if isinstance(content, float) else content


def example(status: int, description: str, content: Any) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: what it answers with, by an example."""
    return {status: {"description": description, "content": {"application/json": {"example": content}}}}
