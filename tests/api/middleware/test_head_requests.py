"""HEAD at every route that answers GET: the same status and headers, and no body."""

import http.client
import re
import time
from pathlib import Path

import anyio
import httpx
import pytest
from app_in_process import App, app_on_port
from queue_steps import enter, submission, suite
from starlette.types import Message, Receive, Scope, Send

from evalsvc.api.answers import HeadAsGet

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


def test_head_of_a_stream_ends(app: App) -> None:
    """The stream of an evaluation that waits lasts a quarter of an hour."""
    enter(app.store, submission(), suite())
    begun = time.monotonic()
    answer = app.http.head("/v1/evaluations/1/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert time.monotonic() - begun < 5
    assert len(app.app.state.followers) == 0


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


def test_head_where_nothing_answers_get(app: App) -> None:
    answer = app.http.head("/v1/prune")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    answer = app.http.delete("/v1/suites")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


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
