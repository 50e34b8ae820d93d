"""Runs, plans and bases; and lists by REST: pages, filters, and what may not be asked."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused
from history_reference import Point, write
from long_lists import fill_lists
from queue_steps import enter, evaluate_whole, metric, submission, suite


def measured(app: App, weights: Path, step: int, *values: float, **fields: Any) -> None:
    """A checkpoint at a step, evaluated with these values of loss/0, loss/1, …"""
    assert app.post(weights, step=step, suites=["loss"], **fields).status_code == 201
    evaluate_whole(app.store, *(metric(value, f"loss/{index}") for index, value in enumerate(values)))


def test_bad_question(app: App, weights: Path) -> None:
    measured(app, weights, 25, 1.0)
    mistyped = {
        "/v1/runs/run-b/metrics": "no run is named 'run-b'; did you mean 'run-a'?",
        "/v1/runs/run-a/metrics?variant=row": "no variant is named 'row'; did you mean 'raw'?",
        "/v1/runs/run-b": "no run is named 'run-b'; did you mean 'run-a'?",
        "/v1/runs/run-b/plan": "no run is named 'run-b'",
        "/v1/runs/run-a/results/24": "no checkpoint at step 24, variant 'raw'; the nearest steps are 25",
        "/v1/runs/run-a/results/25?suite=los": "is named 'los'; did you mean 'loss'?",
        "/v1/runs/run-b/completions": "no run is named 'run-b'",
        "/v1/protocols/0123456789abcdef": "no protocol is named '0123456789abcdef'",
    }
    for path, words in mistyped.items():
        refused(app.http.get(path), 404, "unknown_name", words)
    wrong = {
        "/v1/runs/run-a/metrics?x=time": "x: input should be 'step' or 'tokens', found 'time'",
        "/v1/runs/run%20a/metrics": "run: 'run a' is not a name",
        "/v1/runs/run-a/results/-1": "step: input should be greater than or equal to 0",
        "/v1/protocols/a%00b": "is not a name",
    }
    for path, words in wrong.items():
        refused(app.http.get(path), 422, "invalid_request", words)


def test_runs_and_a_run(app: App, weights: Path) -> None:
    measured(app, weights, 50, 1.0, 2.0)
    app.post(weights, step=25, tokens_seen=10)
    (run,) = app.http.get("/v1/runs").json()["runs"]
    assert {"name": "run-a", "checkpoints": 2, "last_step": 50, "values": 2}.items() <= run.items()
    assert run["last_value_step"] == 50
    document = app.http.get("/v1/runs/run-a").json()
    assert document["plan"] == {"suites": [], "when_behind": "all", "at_most": 1}
    assert [(item["step"], item["tokens_seen"]) for item in document["checkpoints"]] == [(25, 10), (50, None)]
    assert document["checkpoints"][1]["evaluations"] == [{"id": 1, "suite": "loss", "state": "succeeded"}]


def test_runs_that_did_not_change(app: App, weights: Path) -> None:
    measured(app, weights, 50, 1.0)
    tag = app.http.get("/v1/runs").headers["etag"]
    assert app.http.get("/v1/runs", headers={"If-None-Match": tag}).status_code == 304
    assert app.http.get("/v1/runs?limit=7", headers={"If-None-Match": tag}).status_code == 200
    measured(app, weights, 75, 1.0)
    assert app.http.get("/v1/runs", headers={"If-None-Match": tag}).json()["runs"][0]["last_step"] == 75


def test_result_of_a_checkpoint(app: App, weights: Path) -> None:
    measured(app, weights, 25, 3.0, math.nan)
    response = app.http.get("/v1/runs/run-a/results/25", params={"suite": "loss"})
    document = json.loads(response.content, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (document["state"], document["suite"]["name"]) == ("succeeded", "loss")
    assert [(item["name"], item["value"]) for item in document["metrics"]][:2] == [("loss/0", 3.0), ("loss/1", "NaN")]
    assert set(document["protocols"]) == {item["protocol"] for item in document["metrics"]}


def test_completions_along_a_run(app: App) -> None:
    enter(app.store, submission(5), suite(kind="completions"))
    items = [{"index": 0, "prompt": "cheese =>", "way": "greedy", "text": " fromage", "base": None}]
    evaluate_whole(app.store, items=items)
    found = app.http.get("/v1/runs/run-a/completions", params={"prompt": "cheese", "variant": "raw"}).json()
    [step] = found["steps"]
    [completion] = step.pop("completions")
    assert step == {"step": 5, "variant": "raw", "task": "completions-0"}
    assert completion.items() >= {**items[0], "ids": None, "previous": None}.items()


class TestBase:
    def test_may_come_before_the_first_checkpoint(self, app: App, weights: Path) -> None:
        app.post(weights, run="text", step=9)
        expected = {"run": "text", "step": 9, "variant": "raw", "named": True, "checkpoint": 1}
        assert app.http.put("/v1/runs/run-a/base", json={"run": "text", "step": 9}).json() == expected
        assert app.http.get("/v1/runs/run-a").json()["base"] == expected
        app.post(weights, step=9, variant="ema")
        base = app.http.put("/v1/runs/run-a/base", json={"step": 9, "variant": "ema"}).json()
        assert (base["run"], base["step"], base["variant"]) == ("run-a", 9, "ema"), "of the same run unless said"

    def test_refused(self, app: App, weights: Path) -> None:
        app.post(weights, step=25)
        for body, status, code, words in [
            ({"run": "run-b", "step": 25}, 404, "unknown_name", "no run is named 'run-b'; did you mean 'run-a'?"),
            ({"step": "25"}, 422, "invalid_request", "step: input should be a valid integer, found '25'"),
            ({"steps": 25}, 422, "invalid_request", "no field is named 'steps'; did you mean 'step'?"),
        ]:
            refused(app.http.put("/v1/runs/run-a/base", json=body), status, code, words)
        weights.unlink()
        words = "was deleted before it was evaluated"
        refused(app.http.put("/v1/runs/run-a/base", json={"step": 25}), 410, "checkpoint_gone", words)
        assert app.http.get("/v1/runs/run-a").json()["base"]["named"] is False


class TestPlan:
    def test_may_come_before_the_first_checkpoint(self, app: App) -> None:
        plan = {"suites": [{"suite": "loss", "every": 500, "first": 1000, "last": None}], "when_behind": "newest"}
        assert app.http.put("/v1/runs/run-a/plan", json=plan).json() == plan | {"at_most": 1}
        assert app.http.get("/v1/runs/run-a/plan").json() == plan | {"at_most": 1}

    def test_refused(self, app: App) -> None:
        for plan, status, code, words in [
            ({"suites": [{"suite": "los", "every": 5}]}, 404, "unknown_name", "did you mean 'loss'?"),
            ({"suites": [{"suite": "loss", "every": 0}]}, 422, "invalid_request", "suites.0.every: input should be"),
            ({"suites": [{"suite": "loss", "evry": 5}]}, 422, "invalid_request", "did you mean 'every'?"),
            ({"suites": [{"suite": "loss"}]}, 422, "invalid_request", "suites.0.every is missing"),
            ({"when_behind": "latest"}, 422, "invalid_request", "'all', 'newest' or 'refuse', found 'latest'"),
            ({"at_most": 0}, 422, "invalid_request", "at_most: input should be greater than or equal to 1, found 0"),
            ({"at_most": 10**9}, 422, "invalid_request", "at_most: input should be less than or equal to 1000"),
            ({"at_most": True}, 422, "invalid_request", "at_most: input should be a valid integer, found True"),
            ({"when_behind": "newest", "at_most": 2}, 422, "invalid_request", "at_most needs when_behind: refuse"),
        ]:
            plan = {"suites": [], "when_behind": "refuse", **plan}
            refused(app.http.put("/v1/runs/run-a/plan", json=plan), status, code, words)
        assert app.http.get("/v1/runs").json()["runs"] == []


def test_a_plan_of_more_suites_than_a_request_can_check(app: App) -> None:
    """Each was looked for, with the database locked: a body of a megabyte held the service for four minutes."""
    begun = time.monotonic()
    for number, words in ((20_000, "at most 1,000"), (257, "at most 256 items"), (256, "")):
        answer = app.http.put("/v1/runs/a/plan", json={"suites": [{"suite": "loss", "every": 1}] * number})
        if words:
            refused(answer, 422, "invalid_request", "suites", words)
    assert answer.status_code == 200
    assert time.monotonic() - begun < 5


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
