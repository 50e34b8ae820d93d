"""Query parameters that a route does not have, at every route."""

import re
from collections.abc import Iterator
from typing import Any

from app_in_process import App, refused


def test_every_route_refuses_parameters_that_it_does_not_have(app: App) -> None:
    """`/v1/runs?limit=2` answered with all runs, and `/v1/runs/x?variant=ema` with all variants."""
    paths = app.http.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            address = re.sub(r"\{\w+\}", "1", path)
            answer = app.http.request(method, address, params={"zzz": "secret"})
            if method == "head":  # an answer to HEAD has no body
                assert answer.status_code == 422, path
                continue
            detail = refused(answer, 422, "invalid_request", "'zzz'")
            assert "secret" not in detail
            known = [item["name"] for item in operation.get("parameters", ()) if item["in"] == "query"]
            assert ("the route takes no query parameters" in detail) is (not known), (method, path)
            if known:
                assert f"available: {', '.join(sorted(known))}" in detail, (method, path)


def test_every_list_and_object_of_a_request_has_a_limit(app: App) -> None:
    """Each wrong entry is an error of its own: a megabyte of `[]` in `suites` stopped the service for seconds."""
    columns = {f"/v1/runs/{{run}}/metrics body series {name}" for name in ("step", "value", "stderr", "n")}
    without_pydantic = {"/v1/suites/{name} body tasks"}
    paths = app.http.get("/openapi.json").json()
    schemas = paths["components"]["schemas"]
    unlimited = set()
    for path, operations in paths["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                unlimited |= set(_without_limit(parameter["schema"], f"{path} {parameter['name']}", schemas))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                unlimited |= set(_without_limit(content["schema"], f"{path} body", schemas))
    assert unlimited - columns - without_pydantic == set()


def _without_limit(schema: dict[str, Any], place: str, schemas: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield place
    if schema.get("additionalProperties") and "maxProperties" not in schema:
        yield place
    for part in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from _without_limit(part, place, schemas)
    for name, part in schema.get("properties", {}).items():
        yield from _without_limit(part, f"{place} {name}", schemas)


def test_near_misses_of_parameters_and_of_their_words(app: App) -> None:
    for query, words in {
        "/v1/runs?limt=2": "no query parameter is named 'limt'; did you mean 'limit'?",
        "/v1/runs?Limit=2": "did you mean 'limit'?",
        "/v1/runs?limit": "limit: input should be a valid integer",
        "/v1/runs?limit=1&limit=2": "the query parameter 'limit' is given 2 times; give limit once",
        "/v1/evaluations?state=faild": "found 'faild'; did you mean 'failed'?",
        "/v1/checkpoints?states=failed": "did you mean 'state'?",
        f"/v1/checkpoints?{'n' * 5000}=1": "no query parameter is named 'nnn",
        "/v1/status?x=1": "the route takes no query parameters, found 'x'; leave the parameter out",
        "/v1/runs?cursor=1&%63ursor=2": "'cursor' is given 2 times",
    }.items():
        assert len(refused(app.http.get(query), 422, "invalid_request", words)) < 600
