"""One shape for every error, wherever it comes from; and query parameters that a route does not have."""

import re
from pathlib import Path

import pytest
from app_in_process import App, refused

from evalsvc.api.errors import STATUS
from evalsvc.errors import leaves


def test_every_error_has_a_status() -> None:
    """An error without one would be answered as a bug of the service."""
    assert [leaf.__name__ for leaf in leaves() if leaf not in STATUS] == []
    assert [error.__name__ for error in STATUS if error not in leaves()] == []


def test_unknown_path_and_wrong_method(app: App) -> None:
    """The methods of the first route at a path alone would hide that a suite can be put."""
    refused(app.http.get("/v2/runs"), 404, "unknown_name", "there is nothing at /v2/runs; /docs")
    doubled = app.http.post("http://evalsvc//v1/checkpoints")
    refused(
        doubled, 404, "unknown_name", "//v1/checkpoints; give the address of the service without a slash at its end"
    )
    response = app.http.delete("/v1/runs")
    refused(response, 405, "invalid_request", "DELETE is not possible at /v1/runs", "use one of: GET")
    response = app.http.patch("/v1/suites/mine")
    refused(response, 405, "invalid_request", "use one of: DELETE, GET, HEAD, PUT")
    assert response.headers["allow"] == "DELETE, GET, HEAD, PUT"
    assert app.http.get("/v1/prune").headers["allow"] == "POST"


def test_body_that_is_no_request(app: App) -> None:
    for body, words in [
        (b'{"run": "a"', "the body is not JSON: expecting ',' delimiter at character 11"),
        (b"", "the body is missing"),
        (b"[1]", "the body: input should be a valid dictionary"),
        (b"{}", "run is missing; step is missing; uri is missing"),
    ]:
        response = app.http.post("/v1/checkpoints", content=body, headers={"Content-Type": "application/json"})
        refused(response, 422, "invalid_request", words)


def test_bug_says_so_without_a_trace(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reports it can be told by the name of the request which trace in the log is theirs."""

    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("evalsvc.api.routes.runs.runs_view", broken)
    response = app.http.get("/v1/runs", headers={"X-Request-ID": "mine"})
    detail = refused(response, 500, "internal_error", "GET /v1/runs", "RuntimeError", "log")
    assert "secret" not in detail
    assert "Traceback" not in detail
    assert response.headers["x-request-id"] == "mine"


def test_database_that_went_away(app: App) -> None:
    """Not a bug of the service: 503, so that a trainer's retry is right."""
    with app.store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
    refused(app.http.get("/v1/runs"), 503, "database_unusable", "no such table: runs")


def test_posted_example_is_valid(app: App, weights: Path) -> None:
    """An example that does not work is worse than none."""
    body = app.http.get("/openapi.json").json()["components"]["schemas"]["CheckpointInput"]["examples"][0]
    assert app.http.post("/v1/checkpoints", json=body | {"uri": str(weights)}).status_code == 201


def test_what_was_sent_is_not_sent_back_whole(app: App) -> None:
    response = app.http.put("/v1/suites/a", json={"tasks": [{"kind": "l" * 19_000}]})
    detail = refused(response, 404, "unknown_name", "no task is named 'lllll", "…'; available: alignment, ")
    assert len(detail) < 1000
    response = app.http.put("/v1/suites/a", json={"tasks": [{"kind": "loss", "l" * 19_000: 1}]})
    assert len(response.json()["detail"]) < 4100


def test_a_query_with_a_nul(app: App) -> None:
    """PostgreSQL takes none in a text that it looks for, which was a bug of the service to who asked."""
    refused(app.http.get("/v1/table?run=%00"), 422, "invalid_request", "the query has a NUL character")


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
