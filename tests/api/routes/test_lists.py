"""Lists by REST: pages, filters, the older name of `metric`, and what may not be asked."""

from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused
from history_reference import Point, write
from long_lists import fill_lists
from queue_steps import enter, submission, suite

LISTS = {
    "/v1/runs": "runs",
    "/v1/checkpoints": "checkpoints",
    "/v1/evaluations": "evaluations",
    "/v1/runs/run-a/artifacts": "artifacts",
    "/v1/evaluations/1/artifacts": "artifacts",
    "/v1/protocols": "protocols",
    "/v1/suites": "suites",
}


@pytest.fixture
def filled(app: App) -> App:
    for step in range(5):
        enter(app.store, submission(step), suite())
        enter(app.store, submission(step, run=f"run-{step}"))
    write(app.store, {f"lower/{index}": [Point(0, 1.0, None, 1)] for index in range(3)}, "run-b")
    return app


def pages(app: App, path: str, limit: int) -> list[Any]:
    rows: list[Any] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        answer = app.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()[LISTS[path]]) <= limit
        rows += answer.json()[LISTS[path]]
        query["cursor"] = answer.json()["next_cursor"]
        if query["cursor"] is None:
            return rows


def test_every_list_has_pages(filled: App) -> None:
    for path, key in LISTS.items():
        whole = filled.http.get(path).json()
        assert whole["next_cursor"] is None
        assert pages(filled, path, 2) == whole[key], path
    names = [row["name"] for row in filled.http.get("/v1/suites").json()["suites"]]
    assert names == sorted(names)


def test_a_list_is_a_hundred_rows_unless_asked(app: App) -> None:
    with app.store.transaction() as session:
        fill_lists(session, 101)
    first = app.http.get("/v1/checkpoints").json()
    assert len(first["checkpoints"]) == 100
    [last] = app.http.get("/v1/checkpoints", params={"cursor": first["next_cursor"]}).json()["checkpoints"]
    assert (last["step"], last["run"]) == (101, "run-00001")


FILTERS = [
    ("checkpoints?run=' OR 1=1 --", 404, "no run is named"),
    ("checkpoints?run=", 404, "no run is named ''"),
    (f"checkpoints?run={'r' * 20_000}", 404, "no run is named"),
    ("checkpoints?variant=RAW", 404, "no variant is named 'RAW'; available: raw"),
    ("checkpoints?state=done", 422, "state: input should be 'queued', 'running'"),
    ("checkpoints?from=5&to=4", 422, "from=5 is greater than to=4; swap the two"),
    ("checkpoints?from=99999999999999999999", 422, "from: input should be less than or equal to"),
    ("evaluations?suite=los", 404, "no suite is named 'los'; did you mean 'loss'"),
    ("protocols?metric=lower/", 404, "no metric is named 'lower/'; did you mean 'lower/"),
    ("protocols?run=run-a&metric=lower/0", 404, "no metric is named 'lower/0'"),
    ("protocols?name=lower/0", 422, "no query parameter is named 'name'"),
]
"""Queries, the status of each answer, and words of its detail."""


def test_filters_name_what_is_near(filled: App) -> None:
    for query, status, words in FILTERS:
        code = {404: "unknown_name", 422: "invalid_request"}[status]
        assert len(refused(filled.http.get(f"/v1/{query}"), status, code, words)) < 800


def test_a_suite_that_evaluated_nothing_yet_has_no_evaluations(filled: App, weights: Path) -> None:
    answer = filled.http.get("/v1/evaluations", params={"suite": "loss"})
    assert answer.json() == {"evaluations": [], "next_cursor": None}
    [newest, *_] = filled.http.get("/v1/evaluations", params={"suite": "quick", "run": "run-a"}).json()["evaluations"]
    assert (newest["id"], newest["step"], newest["suite"]["name"], newest["state"]) == (5, 4, "quick", "queued")


def test_limits_and_cursors_that_are_refused(filled: App) -> None:
    """Each is answered with a problem, and none with a bug or an empty list."""
    of_runs = filled.http.get("/v1/runs", params={"limit": 1}).json()["next_cursor"]
    of_checkpoints = filled.http.get("/v1/checkpoints", params={"limit": 1}).json()["next_cursor"]
    again = "start again without `cursor`"
    for limit in ("0", "-1", "1001", "1e3", "9" * 5000, "١٢٣x", "", "NaN"):
        refused(filled.http.get("/v1/runs", params={"limit": limit}), 422, "invalid_request", "limit: ")
    for path in LISTS:
        refused(filled.http.get(path, params={"limit": 1001}), 422, "invalid_request", "limit: ")
        for cursor in (of_checkpoints if path == "/v1/runs" else of_runs, "A" * 60_000, ""):
            refused(filled.http.get(path, params={"cursor": cursor}), 422, "invalid_request", again)
    moved = {"run": "run-a", "cursor": of_checkpoints}
    refused(filled.http.get("/v1/checkpoints", params=moved), 422, "invalid_request", again)
