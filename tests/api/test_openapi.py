"""The OpenAPI document says of every operation what it is, with what it is called, and what it answers."""

from collections.abc import Iterator
from typing import Any

from evalsvc.api.app import create_app
from evalsvc.config import Settings

DOCUMENT = create_app(Settings()).openapi()
SCHEMAS = DOCUMENT["components"]["schemas"]


def lacking(operation: dict[str, Any]) -> Iterator[str]:
    """What an operation does not say."""
    yield from (field for field in ("summary", "description") if not operation.get(field))
    for parameter in operation.get("parameters", []):
        if not (parameter.get("description") or parameter["schema"].get("description")):
            yield f"description of {parameter['name']}"
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = SCHEMAS.get(body["schema"].get("$ref", "").rpartition("/")[2], body["schema"])
        if not ("example" in body or schema.get("examples")):
            yield f"example of the body, {media_type}"
    for status, answer in operation["responses"].items():
        for media_type, content in answer.get("content", {}).items() if status.startswith("2") else ():
            if not content.keys() & {"example", "examples"} and not content["schema"].keys() & {"$ref", "anyOf"}:
                yield f"example of the answer {status}, {media_type}"


def test_every_operation_has_a_description_and_examples() -> None:
    assert "HTTPValidationError" not in SCHEMAS
    missing = {
        f"{method.upper()} {path}": [*lacking(operation)]
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    }
    assert {name: words for name, words in missing.items() if words} == {}


def test_every_answer_is_described() -> None:
    """By a schema where it is JSON; errors as problems."""
    missing = []
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                for media_type, content in answer.get("content", {}).items():
                    if not content.get("schema") and media_type != "*/*":
                        missing.append((method, path, status, media_type))
                    if status[0] in "45":
                        assert media_type == "application/problem+json", (method, path, status)
            if path not in ("/healthz", "/readyz"):
                assert {"401", "403", "429", "4XX", "503"} <= set(operation["responses"]), (method, path)
    assert missing == []


def test_every_list_and_object_of_a_request_has_a_limit() -> None:
    """Each wrong entry is an error of its own: a megabyte of `[]` in `suites` stopped the service for seconds."""
    columns = {f"/v1/runs/{{run}}/metrics body series {name}" for name in ("step", "value", "stderr", "n")}
    without_pydantic = {"/v1/suites/{name} body tasks"}
    unlimited = set()
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                unlimited |= set(_without_limit(parameter["schema"], f"{path} {parameter['name']}"))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                unlimited |= set(_without_limit(content["schema"], f"{path} body"))
    assert unlimited - columns - without_pydantic == set()


def _without_limit(schema: dict[str, Any], place: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield place
    if schema.get("additionalProperties") and "maxProperties" not in schema:
        yield place
    for part in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from _without_limit(part, place)
    for name, part in schema.get("properties", {}).items():
        yield from _without_limit(part, f"{place} {name}")
