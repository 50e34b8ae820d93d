"""Bodies that are too large, too slow, or made to be expensive."""

import asyncio
import threading
import time
from typing import Any

import pytest
from app_in_process import App, needs_by_route, refused
from starlette.exceptions import HTTPException

from evalsvc.api.middleware import bodies
from evalsvc.api.middleware.access import NEEDS, Needs
from evalsvc.api.middleware.bodies import BodyLimit, parse_json


def test_imports_and_parts_of_uploads_have_a_limit_of_their_own(app: App) -> None:
    limits = {route: needed.body for route, needed in needs_by_route(app.app).items() if needed}
    others = {route: limit for route, limit in limits.items() if limit != bodies.MAX_BODY}
    assert others == {("POST", "/v1/runs/{run}/metrics"): bodies.MAX_IMPORT, ("PATCH", "/v1/uploads/{sha256}"): None}


START = b'{"run": "a", "step": 1, "uri": "/nowhere.pt", '


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 90_000, "the body is nested more than 64 levels deep at character 64; nest it less"),
        (
            START + b'"model": {"[[": ' + b"[" * 70 + b"]" * 70 + b"}}",
            "the body is nested more than 64 levels deep at character 124",
        ),
        (b'{"a": ' * 65 + b"1" + b"}" * 65, "the body is nested more than 64 levels deep at character 384"),
        (
            START + b'"tags": {"99": "' + b"1" * 5000 + b'"}, "tokens_seen": -' + b"9" * 5000 + b"}",
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
    lists = "[" + ",".join(["[]"] * (bodies.MAX_VALUES // 2 - 1)) + "]"
    for content in ("[" * 64 + "]" * 64, lists, "\ufeff{}", "9" * 4300):
        parse_json(content.encode())


BOMBS = {
    "lists": b"[" + b"[]," * 330_000 + b"[]]",
    "objects": b"[" + b"{}," * 330_000 + b"{}]",
    "numbers": b"[" + b"0," * 490_000 + b"0]",
    "pairs": b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b"}",
}
"""JSON within the limit of bytes that takes 50 to 500 times as many bytes of memory."""


@pytest.mark.parametrize("name", BOMBS)
def test_values_are_counted_before_they_are_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(text: str) -> None:
        raise AssertionError("was parsed")

    monkeypatch.setattr(bodies.json, "loads", loads)
    with pytest.raises(HTTPException) as error:
        parse_json(BOMBS[name])
    assert "more than 100,000 values" in error.value.detail


def test_a_large_body_is_parsed_in_a_thread(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each such body would stop the event loop, and with it the probes, for a quarter of a second."""
    threads = []
    plain = bodies.json.loads

    def loads(text: str) -> Any:
        threads.append(threading.current_thread())
        return plain(text)

    monkeypatch.setattr(bodies.json, "loads", loads)
    for size in (10, bodies.INLINE):
        app.http.patch("/v1/runs/r", json={"name": "a" * size})
    loop = app.portal.call(threading.current_thread)
    assert [thread is loop for thread in threads] == [True, False]


def test_bodies_that_are_refused_for_others_of_the_caller_may_be_sent_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "HELD", 10)
    response = app.http.patch("/v1/runs/r", json={"name": "a" * 20})
    refused(response, 429, "rate_limited", "the bodies of your unanswered requests", "fewer large bodies")
    assert response.headers["retry-after"] == "1"


def limited(receive: Any, app: Any, **scope: Any) -> None:
    scope = {"type": "http", "method": "PUT", "path": "/", "headers": [], **scope}
    asyncio.run(BodyLimit(app)(scope, receive, None))  # type: ignore[arg-type]


async def forever(receive: Any) -> None:
    while True:
        await receive()


def refusing(status: int, before: int = 0) -> Any:
    """Return an application that is refused the rest of a body after some messages, and soon."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun = time.monotonic()
        for _ in range(before):
            await receive()
        with pytest.raises(HTTPException) as error:
            await forever(receive)
        assert error.value.status_code == status
        assert time.monotonic() - begun < 2

    return app


def test_an_announced_size_is_refused_before_anything_is_read() -> None:
    async def receive() -> Any:
        raise AssertionError("was read")

    limited(receive, refusing(413), headers=[(b"content-length", b"1000001")])


def test_an_upload_that_stalls_is_given_up_however_much_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte buys time for the rest: a gigabyte that came fast would buy half a day of silence."""
    monkeypatch.setattr(bodies, "SECONDS", 0.05)
    messages = [{"type": "http.request", "body": b"x" * bodies.SLOWEST * 60, "more_body": True}]

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(30)
        return messages.pop()

    limited(receive, refusing(408, before=1), **{NEEDS: Needs("submit", None)})


def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a few hundred connections would hold the service for ever."""
    monkeypatch.setattr(bodies, "SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    limited(receive, refusing(408))


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

    limited(receive, app)


def test_a_caller_holds_so_many_bytes_of_bodies_and_not_more() -> None:
    """The bodies of four hundred connections would take gigabytes, each within its limit."""

    async def send_body() -> Any:
        return {"type": "http.request", "body": b"x" * 1_000_000}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["inner"]:
            await limit(scope["inner"], send_body, send)

    def ask(*hosts: str) -> None:
        """Send a request of each host while those before are not answered."""
        scope: Any = None
        for host in reversed(hosts):
            scope = {"type": "http", "method": "PUT", "path": "/", "headers": [], "client": (host, 1), "inner": scope}
        asyncio.run(limit(scope, send_body, None))  # type: ignore[arg-type]

    limit = BodyLimit(app)
    fitting = ["192.0.2.1"] * (bodies.HELD // 1_000_000)
    for _ in range(2):  # what is answered is held no longer
        ask(*fitting, "192.0.2.2")
    with pytest.raises(HTTPException, match="32,000,000 bytes") as error:
        ask(*fitting, "192.0.2.1")
    assert (error.value.status_code, error.value.headers) == (429, {"Retry-After": "1"})
