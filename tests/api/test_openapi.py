"""The OpenAPI document says of every operation what it is and answers; its page runs and loads nothing else.

Thousands of requests are made from the document: every answer is one that it has, and none is a bug. What reaches the
queue must not harm it either, so everything that was posted is worked off afterwards.
"""

import base64
import gc
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from app_in_process import App, app_on_port
from generated_requests import REFUSED_BY_MEANING, generate
from queue_steps import enter, evaluate_whole, metric, submission, suite
from signed_in import bearer

from evalsvc.api.app import create_app
from evalsvc.api.middleware import authentication
from evalsvc.api.routes import docs, events
from evalsvc.config import Settings
from evalsvc.store.tables import Evaluation
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
        for media_type, content in answer.get("content", {}).items():
            schema = content.get("schema", {})
            if not schema and media_type != "*/*":
                yield f"schema of the answer {status}, {media_type}"
            if status[0] in "45" and media_type != "application/problem+json":
                yield f"problem in the answer {status}"
            has_example = content.keys() & {"example", "examples"} or schema.keys() & {"$ref", "anyOf"}
            if status[0] == "2" and not has_example:
                yield f"example of the answer {status}, {media_type}"


def test_every_operation_has_a_description_examples_and_answers() -> None:
    assert "HTTPValidationError" not in SCHEMAS
    missing = {}
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            missing[f"{method.upper()} {path}"] = [*lacking(operation)]
            if path not in ("/healthz", "/readyz"):
                assert {"401", "403", "429", "4XX", "503"} <= set(operation["responses"]), (method, path)
    assert {name: words for name, words in missing.items() if words} == {}
    assert set(REFUSED_BY_MEANING) <= missing.keys(), "an exception of the requests below that is no operation"


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


def test_the_page_runs_only_what_its_policy_names_and_all_of_it_is_loaded_from_the_service(app: App) -> None:
    """A machine without the internet showed an empty page, and people put their tokens into this one."""
    answer = app.http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    scripts = re.findall(r"<script>(.+?)</script>", answer.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert all(f"'sha256-{digest}'" in policy for digest in digests)
    assert len(digests) == 1
    assert "//" not in answer.text.replace("<!DOCTYPE", "").replace("/openapi.json", "")
    assert "http" not in policy
    named = re.findall(r'(?:src|href)="(/docs/[^"]+)"', answer.text)
    assert set(named) == set(docs.FILES)
    for path, media_type in docs.FILES.items():
        file = app.http.get(path)
        assert (file.status_code, file.headers["content-type"].partition(";")[0]) == (200, media_type)
        assert len(file.content) > 100_000
    assert b"SwaggerUIBundle" in app.http.get("/docs/swagger-ui-bundle.js").content
    bearer(app, "admin")  # the page needs none, and no other file is served
    assert {app.http.get(path).status_code for path in ("/docs", *docs.FILES)} == {200}
    for path in ("favicon-32x32.png", "__init__.py", "../main.py", "..%2fmain.py", "%2e%2e/main.py", "oauth2-redirect"):
        assert app.http.get(f"/docs/{path}").status_code in (307, 401, 404), path


def test_without_the_package_the_page_says_what_to_install(
    start_app: Callable[..., App], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package without the files is none: another release may have them elsewhere."""
    (tmp_path / "package_of_swagger").mkdir()
    (tmp_path / "package_of_swagger" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("no_such_package", "package_of_swagger"):
        monkeypatch.setattr(docs, "PACKAGE", package)
        app = start_app()
        page = app.http.get("/docs").text
        assert "pip install fastapi-swagger" in page
        assert '<a href="/openapi.json">' in page
        assert "<script" not in page
        assert app.http.get("/docs/swagger-ui.css").status_code == 404
        assert app.http.get("/openapi.json").status_code == 200


EXAMPLES, CASES = (100, 2_000) if os.environ.get("TESTS_LONG") else (4, 1_000)
"""Requests that are made up for each operation beside what is systematic, and the least of an open service."""


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(900 if os.environ.get("TESTS_LONG") else 180)
@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(
    ("database", "with_token"),
    [
        pytest.param("sqlite", False, id="open-sqlite"),
        pytest.param("migrated_postgresql", True, id="tokens-postgresql"),
        pytest.param("migrated_postgresql", False, id="open-postgresql", marks=pytest.mark.long),
        pytest.param("sqlite", True, id="tokens-sqlite", marks=pytest.mark.long),
    ],
)
def test_every_answer_is_one_that_the_document_has(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    with_token: bool,
) -> None:
    """With a token that may do everything, also Schemathesis' own question whether any route ignores who asks."""
    monkeypatch.setattr(events, "LIFETIME", 0.05)  # of an evaluation that waits, a stream would last for long
    monkeypatch.setattr(events, "HEARTBEAT_EVERY", 0.02)
    monkeypatch.setattr(authentication, "FAILURES", 1_000_000)
    address = "" if database == "sqlite" else str(request.getfixturevalue(database))
    with app_on_port(tmp_path / "data", address, rate_limit=0.0, upload_bytes=1_000) as (url, state):
        enter(state.store, submission(tokens_seen=7), suite())
        evaluate_whole(state.store, metric(1.5), metric(math.inf, "loss/image"), items=[{"index": 0, "acc": 1.0}])
        enter(state.store, submission(50), suite())
        if with_token:
            with state.store.transaction() as session:
                headers = {"Authorization": f"Bearer {create_token(session, 'admin', 'admin')}"}
            found = generate(url, max(1, EXAMPLES // 4), weights, seed=2, headers=headers, stateful=False)
            assert found.checks["ignored_auth"] >= 47
        else:
            found = generate(url, EXAMPLES, weights)
            assert {200, 201, 202, 404, 405, 409, 422} <= set(found.statuses), "the cases get past the first check"
        assert not found.failures, "\n\n".join(f"{where}\n{what}" for where, what in found.failures.items())
        assert found.cases >= CASES, f"{found.cases} cases; {dict(found.statuses)}; {dict(found.checks)}"
        assert not [status for status in found.statuses if status >= 500]
        state.coordinator.work()  # what was posted: none of it may stop the queue
        with state.store.reading() as session:
            waiting = session.scalars(sa.select(Evaluation.id).where(Evaluation.state.in_(("queued", "running")))).all()
    assert waiting == []
    gc.collect()  # Schemathesis leaves it connections, which are an error in any test that comes later
