"""The OpenAPI document says of every operation what it is and answers; its page runs and loads nothing else."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, needs_by_route

from evalsvc.api.app import create_app
from evalsvc.api.middleware.access import Needs
from evalsvc.api.routes import docs
from evalsvc.config import Settings
from evalsvc.store.tokens import create_token

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


def test_the_page_runs_only_what_its_policy_names(app: App) -> None:
    answer = app.http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    scripts = re.findall(r"<script>(.+?)</script>", answer.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert all(f"'sha256-{digest}'" in policy for digest in digests)
    assert len(digests) == 1


def test_everything_is_loaded_from_the_service(app: App) -> None:
    """A machine without the internet showed an empty page, and people put their tokens into this one."""
    answer = app.http.get("/docs")
    assert "//" not in answer.text.replace("<!DOCTYPE", "").replace("/openapi.json", "")
    assert "http" not in answer.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="(/docs/[^"]+)"', answer.text)
    assert set(named) == set(docs.FILES)
    for path, media_type in docs.FILES.items():
        file = app.http.get(path)
        assert needs_by_route(app.app)["GET", path] == Needs(None)
        assert (file.status_code, file.headers["content-type"].partition(";")[0]) == (200, media_type)
        assert len(file.content) > 100_000
    assert b"SwaggerUIBundle" in app.http.get("/docs/swagger-ui-bundle.js").content


def test_the_page_needs_no_token_and_no_other_file_is_served(app: App) -> None:
    with app.store.transaction() as session:
        create_token(session, "admin", "admin")
    assert {app.http.get(path).status_code for path in ("/docs", *docs.FILES)} == {200}
    for path in ("favicon-32x32.png", "__init__.py", "../main.py", "..%2fmain.py", "%2e%2e/main.py", "oauth2-redirect"):
        assert app.http.get(f"/docs/{path}").status_code in (307, 401, 404), path


def test_without_the_package_the_page_says_what_to_install(
    start_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "PACKAGE", "no_such_package")
    app = start_app()
    page = app.http.get("/docs").text
    assert "pip install fastapi-swagger" in page
    assert '<a href="/openapi.json">' in page
    assert "<script" not in page
    assert app.http.get("/docs/swagger-ui.css").status_code == 404
    assert app.http.get("/openapi.json").status_code == 200


def test_a_package_without_the_files_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may have them elsewhere."""
    (tmp_path / "package_of_swagger").mkdir()
    (tmp_path / "package_of_swagger" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docs, "PACKAGE", "package_of_swagger")
    assert docs.swagger_folder() is None
