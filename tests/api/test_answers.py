"""Answers: JSON whatever is in it, what is kept and for how long, and HEAD."""

import http.client
import json
import math
import re
from pathlib import Path

import anyio
import httpx
import pytest
from app_in_process import App, app_on_port
from queue_steps import enter, submission, suite
from starlette.types import Message, Receive, Scope, Send

from evalsvc.api import answers as module
from evalsvc.api.answers import Answers, HeadAsGet, JsonAnswer
from evalsvc.api.routes import history


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


def test_many_small_answers_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of a few bytes each would fill the memory long before their bytes reach the limit."""
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


OWN = {"x-request-id", "date"}
"""Headers that differ between any two answers."""


@pytest.fixture
def paths(app: App, weights: Path) -> list[str]:
    """The address of every GET, with names and ids that are there."""
    app.post(weights, suites=["loss"])
    app.coordinator.work()
    known = {"run": "run-a", "step": "25", "name": "loss", "protocol_id": "none", "artifact_id": "1"}
    paths = app.http.get("/openapi.json").json()["paths"]
    found = [
        re.sub(r"\{(\w+)\}", lambda match: known.get(match[1], "1"), path) for path in paths if "get" in paths[path]
    ]
    queries = ["/v1/compare?a=run-a@25&b=run-a@25", "/v1/table?format=csv", "/v1/runs?limt=1", "/v1/nothing"]
    queries += ["/", "/status", "/evaluations/1", "/sign-in"]
    return [path for path in found if path not in ("/metrics", "/v1/status", "/readyz")] + queries


def headers_of(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OWN}


def test_head_has_the_status_and_the_headers_of_get_and_no_body(app: App, paths: list[str]) -> None:
    """HEAD answered 405 at every route; proxies and link checkers ask so."""
    assert len(paths) > 25
    for path in paths:
        of_get, of_head = app.http.get(path), app.http.head(path)
        assert of_head.content == b"", path
        assert of_head.status_code == of_get.status_code, path
        if path.endswith("/events") or "/table" in path:
            of_get.headers.pop("content-length")  # which the test's transport counts; a stream has none
        assert headers_of(of_head) == headers_of(of_get), path


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
