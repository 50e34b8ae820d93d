"""Query parameters that a route does not have, at every route."""

import re

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
