"""Answers: JSON whatever is in it, what is kept and for how long, HEAD; and one shape for every error."""

import http.client
import json
import math
import re
from pathlib import Path

import anyio
import pytest
from app_in_process import App, app_on_port, refused
from queue_steps import enter, submission, suite
from starlette.types import Message, Receive, Scope, Send

from evalsvc.api import answers as module
from evalsvc.api.answers import Answers, HeadAsGet, JsonAnswer
from evalsvc.api.errors import STATUS, problem
from evalsvc.api.routes import history
from evalsvc.errors import leaves


def put(app: App, value: float, run: str = "run-a") -> None:
    series = [{"metric": "a/b", "step": [1], "value": [value]}]
    body = {"source": "x", "series": series, "replace": True}
    assert app.http.post(f"/v1/runs/{run}/metrics", json=body).is_success


def values(app: App, run: str = "run-a") -> list[float]:
    document = app.http.get(f"/v1/runs/{run}/metrics").json()
    assert document["run"] == run
    [series] = document["series"]
    return list(series["value"])


def test_the_same_question_is_answered_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 clients that watch one run each had it read and written anew."""
    put(app, 1.0)
    read, asked = history.read_history, []

    def count(*arguments: object) -> object:
        asked.append(arguments)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(history, "read_history", count)
    assert [values(app) for _ in range(5)] == [[1.0]] * 5
    assert len(asked) == 1


def test_runs_that_take_each_others_names(app: App) -> None:
    put(app, 1.0)
    assert values(app) == [1.0]
    assert app.http.patch("/v1/runs/run-a", json={"name": "run-b"}).is_success
    assert values(app, "run-b") == [1.0]
    put(app, 2.0)
    assert values(app) == [2.0]
    assert app.http.delete("/v1/runs/run-a", params={"confirm": "run-a"}).is_success
    assert app.http.get("/v1/runs/run-a/metrics").status_code == 404
    put(app, 3.0)
    assert values(app) == [3.0]


def test_kept_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 100)
    monkeypatch.setattr(module, "ENTRY_BYTES", 10)
    answers, made = Answers[bytes](), []

    def ask(tag: str, size: int = 40) -> None:
        assert answers.get("run-a", tag, lambda: made.append(tag) or bytes(size)) == bytes(size)  # type: ignore[func-returns-value]

    for tag in ("one", "two", "one", "three", "one", "two"):
        ask(tag)
    assert made == ["one", "two", "three", "two"], "the one that was asked for longest ago goes first"
    ask("huge", 1000)
    ask("one")
    assert made[-2:] == ["huge", "one"]
    # Counts of a few bytes each would fill the memory long before their bytes reach the limit.
    monkeypatch.setattr(module, "KEPT_BYTES", 10 * module.ENTRY_BYTES)
    plain, heavy = Answers[bytes](), Answers[bytes](lambda body: module.ENTRY_BYTES)
    for answers, first in ((plain, 90), (heavy, 95)):
        for number in range(100):
            answers.get("run-a", str(number), lambda: b"")
        kept = [number for number in range(100) if answers.kept("run-a", str(number)) is not None]
        assert kept == list(range(first, 100))


def test_numbers_that_are_none_become_strings_wherever_they_are() -> None:
    """A plug-in's provenance may hold them; a response that cannot be rendered would be a 500."""
    content = {"a": [1.5, {"b": math.nan}], "c": -math.inf, "d": None}
    assert json.loads(JsonAnswer(content).body) == {"a": [1.5, {"b": "NaN"}], "c": "-Infinity", "d": None}


@pytest.fixture
def paths(app: App, weights: Path) -> list[str]:
    """The address of every GET, with names and ids that are there."""
    app.post(weights, suites=["loss"])
    app.coordinator.work()
    known = {"run": "run-a", "step": "25", "name": "loss", "protocol_id": "none", "artifact_id": "1"}
    paths = app.http.get("/openapi.json").json()["paths"]
    found = [re.sub(r"\{(\w+)\}", lambda name: known.get(name[1], "1"), path) for path in paths if "get" in paths[path]]
    queries = ["/v1/compare?a=run-a@25&b=run-a@25", "/v1/table?format=csv", "/v1/runs?limt=1", "/v1/nothing"]
    queries += ["/", "/status", "/evaluations/1", "/sign-in"]
    return [path for path in found if path not in ("/metrics", "/v1/status", "/readyz")] + queries


def test_head_has_the_status_and_the_headers_of_get_and_no_body(app: App, paths: list[str]) -> None:
    """HEAD answered 405 at every route; proxies and link checkers ask so."""
    assert len(paths) > 25
    for path in paths:
        of_get, of_head = app.http.get(path), app.http.head(path)
        assert of_head.content == b"", path
        assert of_head.status_code == of_get.status_code, path
        if path.endswith("/events") or "/table" in path:
            of_get.headers.pop("content-length")  # which the test's transport counts; a stream has none
        for answer in (of_get, of_head):
            answer.headers.update({"x-request-id": "its own", "date": "its own"})
        assert of_head.headers == of_get.headers, path


def test_head_ends_whatever_still_sends() -> None:
    """A table, or a stream that does not ask whether its client is there, would be made to its end for nobody."""
    sent: list[Message] = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
            await anyio.sleep(0.01)

    async def keep(message: Message) -> None:
        sent.append(message)

    async def ask() -> bool:
        with anyio.move_on_after(2) as patience:
            await HeadAsGet(endless)({"type": "http", "method": "HEAD"}, anyio.sleep_forever, keep)
        return patience.cancelled_caught

    assert not anyio.run(ask)
    assert [message.get("body") for message in sent] == [None, b""]


def test_a_connection_goes_on_after_head(tmp_path: Path) -> None:
    """A body that follows HEAD would be taken for the beginning of the next answer."""
    with app_on_port(tmp_path / "data") as (url, state):
        enter(state.store, submission(), suite())
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        for path in ("/v1/suites", "/v1/table?format=csv", "/v1/evaluations/1/events", "/v1/nothing"):
            connection.request("HEAD", path)
            answer = connection.getresponse()
            assert (answer.read(), answer.status) == (b"", 404 if path == "/v1/nothing" else 200)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read().startswith(b'{"status":"ok"'), path
        connection.close()


def test_every_error_has_a_status() -> None:
    """An error without one would be answered as a bug of the service."""
    assert [leaf.__name__ for leaf in leaves() if leaf not in STATUS] == []
    assert [error.__name__ for error in STATUS if error not in leaves()] == []


def test_unknown_path_and_wrong_method(app: App) -> None:
    """The methods of the first route at a path alone would hide that a suite can be put."""
    refused(app.http.get("/v2/runs"), 404, "unknown_name", "there is nothing at /v2/runs; /docs")
    words = "//v1/checkpoints; give the address of the service without a slash at its end"
    refused(app.http.post("http://evalsvc//v1/checkpoints"), 404, "unknown_name", words)
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


def test_bug_has_no_trace_and_a_database_that_went_away_is_none(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reports it can be told by the name of the request which trace in the log is theirs."""
    with app.store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
    refused(app.http.get("/v1/runs"), 503, "database_unusable", "no such table: runs")  # a trainer's retry is right

    monkeypatch.setattr("evalsvc.api.routes.runs.runs_tag", lambda *_: {}["secret detail"])
    response = app.http.get("/v1/runs", headers={"X-Request-ID": "mine"})
    detail = refused(response, 500, "internal_error", "GET /v1/runs", "KeyError", "log")
    assert "secret" not in detail
    assert "Traceback" not in detail
    assert response.headers["x-request-id"] == "mine"


def test_posted_example_is_valid(app: App, weights: Path) -> None:
    """An example that does not work is worse than none."""
    body = app.http.get("/openapi.json").json()["components"]["schemas"]["CheckpointInput"]["examples"][0]
    assert app.http.post("/v1/checkpoints", json=body | {"uri": str(weights)}).status_code == 201


def test_what_was_sent_is_not_sent_back_whole(app: App) -> None:
    detail = json.loads(problem(422, "invalid_request", "a" * 5000).body)["detail"]
    assert detail == "a" * 4000 + " … (5,000 characters)"
    response = app.http.put("/v1/suites/a", json={"tasks": [{"kind": "l" * 19_000}]})
    detail = refused(response, 404, "unknown_name", "no task is named 'lllll", "…'; available: alignment, ")
    assert len(detail) < 1000


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
        # PostgreSQL takes none in a text that it looks for, which was a bug of the service to who asked.
        "/v1/table?run=%00": "the query has a NUL character",
    }.items():
        assert len(refused(app.http.get(query), 422, "invalid_request", words)) < 600
