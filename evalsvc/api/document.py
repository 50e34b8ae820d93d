"""The response of every route: JSON, with what JSON has no words for as strings."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic_core import to_json


class Document(JSONResponse):
    """JSON. A NaN or an infinity from wherever becomes its string and never an error."""

    def render(self, content: Any) -> bytes:
        # Eight times as fast as the standard library where it is numbers, of which a history is made.
        return to_json(content, inf_nan_mode="strings")


def example(status: int, description: str, content: Any) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: what it answers with, by an example."""
    return {status: {"description": description, "content": {"application/json": {"example": content}}}}
