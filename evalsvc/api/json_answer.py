"""The response of every route: JSON, with what JSON has no words for as strings."""

from __future__ import annotations

from typing import Any, Union

from fastapi.responses import JSONResponse
from pydantic_core import to_json

from evalsvc.api.json_schema import TEXT, Schema
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import example_of
from evalsvc.spec.documents.reading import content_of


class JsonAnswer(JSONResponse):
    """JSON. A NaN or an infinity from wherever becomes its string and never an error."""

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else rendered(content)


def rendered(content: Any) -> bytes:
    """The bytes of an answer's content. A JsonAnswer takes them as they are, so that they can be kept."""
    # Eight times as fast as the standard library where it is numbers, of which a history is made.
    return to_json(content_of(content) if isinstance(content, Document) else content, inf_nan_mode="strings")


def document(status: int, description: str, *kinds: type[Document]) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses`: a document of one of these types, whose schema and example follow from the type."""
    model, *others = kinds
    examples = {kind.__name__: {"value": example_of(kind)} for kind in kinds}
    content = {"examples": examples} if others else {"example": example_of(model)}
    described = {"description": description, "content": {"application/json": content}}
    return {status: {**described, "model": Union[kinds]}}  # noqa: UP007


def answer(
    status: int, description: str, schema: Schema, example: Any = None, examples: dict[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: what it answers with, by a schema and an example, or several by their names."""
    given = {"schema": schema, "example": example, "examples": examples}
    content = {name: part for name, part in given.items() if part is not None}
    return {status: {"description": description, "content": {"application/json": content}}}


def or_csv(answers: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The same, where a client may ask for a table of text in its place."""
    for described in answers.values():
        described["content"]["text/csv"] = {"schema": TEXT}
    return answers
