"""The JSON response of every route, and the description of responses in OpenAPI."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter
from pydantic_core import to_json

from evalsvc.spec import documents
from evalsvc.spec.documents.document import Document, example_of
from evalsvc.spec.documents.reading import content_of

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
    return to_json(content_of(content) if isinstance(content, Document) else content, inf_nan_mode="strings")


def document(status: int, description: str, *kinds: type[Document]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that answers with a document of one of `kinds`."""
    schemas = [{"$ref": _SCHEMAS + kind.__name__} for kind in kinds]
    schema = {"anyOf": schemas} if len(kinds) > 1 else schemas[0]
    return {status: {"description": description, "content": {"application/json": {"schema": schema}}}}


_SCHEMAS = "#/components/schemas/"

_DOCUMENTS = {_SCHEMAS + name: kind for name, kind in vars(documents).items() if isinstance(kind, type)}


def add_documents_to_openapi(app: FastAPI) -> None:
    """Add the schemas and examples of the routes' documents to the application's OpenAPI document.

    The schemas are made when a client first asks for the OpenAPI document, so that the start of a process takes no
    longer.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _add_documents(plain())
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]


def _add_documents(content: dict[str, Any]) -> None:
    named: dict[str, type[Document]] = {}
    for operation in (operation for operations in content["paths"].values() for operation in operations.values()):
        for response in operation["responses"].values():
            media = response.get("content", {}).get("application/json", {})
            schema = media.get("schema", {})
            references = [option.get("$ref") for option in schema.get("anyOf", [schema])]
            kinds = [_DOCUMENTS[reference] for reference in references if reference in _DOCUMENTS]
            named |= {kind.__name__: kind for kind in kinds}
            if len(kinds) == 1:
                media["example"] = example_of(kinds[0])
            elif kinds:
                media["examples"] = {kind.__name__: {"value": example_of(kind)} for kind in kinds}
    schemas = content["components"]["schemas"] | _schemas_of(tuple(named.values()))
    content["components"]["schemas"] = dict(sorted(schemas.items()))


@cache
def _schemas_of(kinds: tuple[type[Document], ...]) -> dict[str, Any]:
    """Return the JSON schemas of documents, and of the documents in their fields, by type name."""
    adapters: list[tuple[object, Literal["serialization"], TypeAdapter[Any]]] = [
        (kind, "serialization", TypeAdapter(kind)) for kind in kinds
    ]
    _, schemas = TypeAdapter.json_schemas(adapters, ref_template=_SCHEMAS + "{model}")
    return dict(schemas["$defs"])


def or_text(
    responses: dict[int | str, dict[str, Any]], media_type: str, example: str, schema_type: str = "string"
) -> dict[int | str, dict[str, Any]]:
    """Return `responses` with a further media type, such as `text/csv`, that a client may ask for.

    `schema_type` is the JSON schema type of the content that the text represents.
    """
    for response in responses.values():
        response["content"][media_type] = {"schema": {"type": schema_type}, "example": example}
    return responses
