"""The response of every route: JSON, with what JSON has no words for as strings."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from evalsvc.protocol import plain_json


class Document(JSONResponse):
    """JSON. A NaN or an infinity from wherever becomes its string and never an error."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except ValueError:
            return super().render(plain_json(content))


def example(status: int, description: str, content: Any) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: what it answers with, by an example."""
    return {status: {"description": description, "content": {"application/json": {"example": content}}}}
