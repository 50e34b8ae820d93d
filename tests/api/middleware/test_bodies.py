"""Bodies that are too large, too slow, or made to be expensive."""

import asyncio
import time
from typing import Any

import pytest
from app_in_process import App, refused
from starlette.exceptions import HTTPException

from evalsvc.api.middleware import bodies
from evalsvc.api.middleware.bodies import BodyLimit, max_body, parse_json


def test_an_announced_size_is_refused_before_anything_is_read() -> None:
    async def receive() -> Any:
        raise AssertionError("was read")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(HTTPException) as error:
            await receive()
        assert error.value.status_code == 413

    scope = {"type": "http", "method": "PUT", "path": "/v1/suites/a", "headers": [(b"content-length", b"1000001")]}
    asyncio.run(BodyLimit(app)(scope, receive, None))  # type: ignore[arg-type]


def test_routes_may_take_more() -> None:
    assert max_body("POST", "/v1/runs/a/metrics") == bodies.MAX_IMPORT
    assert max_body("POST", "/v1/runs/a/metrics/b") == max_body("PUT", "/v1/runs/a/metrics") == bodies.MAX_BODY


def test_parts_of_uploads_have_a_limit_of_their_own() -> None:
    assert max_body("PATCH", f"/v1/uploads/{'0' * 32}") is None
    assert max_body("POST", "/v1/uploads") == max_body("PATCH", "/v1/uploads/a/b") == bodies.MAX_BODY


def test_an_upload_that_stalls_is_given_up_however_much_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte buys time for the rest: a gigabyte that came fast would buy half a day of silence."""
    monkeypatch.setattr(bodies, "SECONDS", 0.05)
    messages = [{"type": "http.request", "body": b"x" * bodies.SLOWEST * 60, "more_body": True}]

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(30)
        return messages.pop()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(HTTPException) as error:
            await receive()
        assert error.value.status_code == 408

    scope = {"type": "http", "method": "PATCH", "path": "/v1/uploads/a", "headers": []}
    begun = time.monotonic()
    asyncio.run(BodyLimit(app)(scope, receive, None))  # type: ignore[arg-type]
    assert time.monotonic() - begun < 2


def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a few hundred connections would hold the service for ever."""
    monkeypatch.setattr(bodies, "SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun = time.monotonic()

        async def read_all() -> None:
            while True:
                await receive()

        with pytest.raises(HTTPException) as error:
            await read_all()
        assert error.value.status_code == 408
        assert "the body did not arrive within" in error.value.detail
        assert time.monotonic() - begun < 2

    asyncio.run(BodyLimit(app)({"type": "http", "method": "PUT", "path": "/", "headers": []}, receive, None))  # type: ignore[arg-type]


def test_a_stream_waits_for_its_client_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the body, to receive is to wait until the client goes; that is not late."""
    monkeypatch.setattr(bodies, "SECONDS", 0.01)
    messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        await asyncio.sleep(0 if len(messages) == 2 else 0.1)
        return messages.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    asyncio.run(BodyLimit(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, None))  # type: ignore[arg-type]


START = '{"run": "a", "step": 1, "uri": "/nowhere.pt", '


def test_json_that_is_made_to_be_expensive(app: App) -> None:
    """Huge or endless: never a bug of the service, and answered at once. What is too deep is in the next test."""
    begun = time.monotonic()
    for rest in (
        '"tokens_seen": 1e999999}',
        '"priority": -' + "9" * 4000 + "}",
        '"tags": {' + ",".join(f'"k{index}": "v"' for index in range(40_000)) + "}}",
        '"model": {"a": ' + "1" * 4000 + "}}",
        '"tags": {"\\u0000": "a"}}',
    ):
        response = app.http.post("/v1/checkpoints", content=START + rest, headers={"Content-Type": "application/json"})
        assert response.status_code in (403, 422), response.text[:300]
        assert len(response.content) < 10_000, "what was sent is not sent back"
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 900_000, "the body is nested more than 64 levels deep at character 64; nest it less"),
        (
            START.encode() + b'"model": {"[[": ' + b"[" * 70 + b"]" * 70 + b"}}",
            "the body is nested more than 64 levels deep at character 124",
        ),
        (b'{"a": ' * 65 + b"1" + b"}" * 65, "the body is nested more than 64 levels deep at character 384"),
        (
            START.encode() + b'"tags": {"99": "' + b"1" * 5000 + b'"}, "tokens_seen": -' + b"9" * 5000 + b"}",
            "the body has a number of 5,001 characters at character 5081; send numbers of at most 4,300 digits",
        ),
        (b'{"run": "\xff"}', "the body is not UTF-8: byte 0xff at position 9; send the text as UTF-8"),
        (b'{"run": "r",}', "the body is not JSON"),
    ],
    ids=lambda value: repr(value[-12:]),
)
def test_a_body_that_cannot_be_read_is_told_where(app: App, body: bytes, words: str) -> None:
    """All of these were answered by `There was an error parsing the body`."""
    headers = {"Content-Type": "application/json"}
    for method, path in (("POST", "/v1/checkpoints"), ("PUT", "/v1/runs/r/plan"), ("PATCH", "/v1/runs/r")):
        response = app.http.request(method, path, content=body, headers=headers)
        assert len(refused(response, 422, "invalid_request", words)) < 10_000, "what was sent is not sent back"


def test_a_body_at_the_limits_is_read() -> None:
    for content in ("[" * 64 + "]" * 64, "[" + ",".join(["[]"] * 100_000) + "]", "\ufeff{}", "9" * 4300):
        parse_json(content.encode())
