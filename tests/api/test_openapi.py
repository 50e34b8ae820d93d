"""The OpenAPI document says of every operation what it is, with what it is called, and what it answers."""

from collections.abc import Iterator
from typing import Any

from evalsvc.api.app import create_app
from evalsvc.config import Settings


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def lacking(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    """What an operation does not say."""
    yield from (field for field in ("summary", "description") if not operation.get(field))
    for parameter in operation.get("parameters", []):
        if not (parameter.get("description") or parameter["schema"].get("description")):
            yield f"description of {parameter['name']}"
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = schemas.get(body["schema"].get("$ref", "").rpartition("/")[2], body["schema"])
        if not ("example" in body or schema.get("examples")):
            yield f"example of the body, {media_type}"
    for status, answer in operation["responses"].items():
        for media_type, content in answer.get("content", {}).items() if status.startswith("2") else ():
            if not content.keys() & {"example", "examples"} and not content["schema"].keys() & {"$ref", "anyOf"}:
                yield f"example of the answer {status}, {media_type}"


def test_every_operation_has_a_description_and_examples() -> None:
    document = create_app(Settings()).openapi()
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    missing = {name: found for name, operation in operations(document) if (found := [*lacking(operation, schemas)])}
    assert missing == {}
