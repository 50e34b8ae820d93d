"""Bodies that are too large, too slow, or made to be expensive."""

import asyncio
import threading
import time
from typing import Any

import pytest
from app_in_process import App, refused
from starlette.exceptions import HTTPException

from evalsvc.api.middleware import bodies
from evalsvc.api.middleware.access import NEEDS, Needs
from evalsvc.api.middleware.bodies import BodyLimit, parse_json

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
    ],
    ids=lambda value: repr(value[-12:]),
)
def test_a_body_that_cannot_be_read_is_told_where(app: App, body: bytes, words: str) -> None:
    """All of these were answered by `There was an error parsing the body`."""
    for method, path in (("POST", "/v1/checkpoints"), ("PUT", "/v1/runs/r/plan"), ("PATCH", "/v1/runs/r")):
        response = app.http.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert len(refused(response, 422, "invalid_request", words)) < 10_000, "what was sent is not sent back"


def test_a_body_at_the_limits_is_read() -> None:
    lists = "[" + ",".join(["[]"] * (bodies.MAX_VALUES // 2 - 1)) + "]"
    for content in ("[" * 64 + "]" * 64, lists, "\ufeff{}", "9" * 4300):
        parse_json(content.encode())


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" + b"[]," * 330_000 + b"[]]",
        b"[" + b"{}," * 330_000 + b"{}]",
        b"[" + b"0," * 490_000 + b"0]",
        b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b"}",
    ],
    ids=["lists", "objects", "numbers", "pairs"],
)
def test_values_are_counted_before_they_are_made(bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON within the limit of bytes that takes 50 to 500 times as many bytes of memory."""
    monkeypatch.setattr(bodies.json, "loads", lambda text: pytest.fail("was parsed"))
    with pytest.raises(HTTPException, match="more than 100,000 values"):
        parse_json(bomb)


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
    monkeypatch.setattr(bodies, "HELD", 10)  # what is refused for others of the caller may be sent again
    response = app.http.patch("/v1/runs/r", json={"name": "a" * 20})
    refused(response, 429, "rate_limited", "the bodies of your unanswered requests", "fewer large bodies")
    assert response.headers["retry-after"] == "1"


def limited(receive: Any, app: Any, **scope: Any) -> None:
    scope = {"type": "http", "method": "PUT", "path": "/", "headers": [], **scope}
    asyncio.run(BodyLimit(app)(scope, receive, None))  # type: ignore[arg-type]


def refusing(status: int, before: int = 0) -> Any:
    """Return an application that is refused the rest of a body after some messages, and soon."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun = time.monotonic()
        for _ in range(before):
            await receive()
        with pytest.raises(HTTPException) as error:
            [await receive() for _ in range(1000)]
        assert error.value.status_code == status
        assert time.monotonic() - begun < 2

    return app


def test_an_announced_size_is_refused_before_anything_is_read() -> None:
    limited(pytest.fail, refusing(413), headers=[(b"content-length", b"1000001")])


@pytest.mark.parametrize(
    ("pauses", "size", "before", "limit"),
    [([0, 30], bodies.SLOWEST * 60, 1, None), ([0.02] * 100, 1, 0, bodies.MAX_BODY)],
    ids=["stalls", "drips"],
)
def test_a_body_that_stalls_or_drips_is_given_up_however_much_came_before(
    pauses: list[float], size: int, before: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte that came fast would buy half a day of silence; a few hundred that drip would hold the service."""
    monkeypatch.setattr(bodies, "SECONDS", 0.05)
    left = iter(pauses)

    async def receive() -> Any:
        await asyncio.sleep(next(left))
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    limited(receive, refusing(408, before), **{NEEDS: Needs("submit", limit)})


def test_a_stream_waits_for_its_client_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the body, to receive is to wait until the client goes; that is not late."""
    monkeypatch.setattr(bodies, "SECONDS", 0.01)
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b""}]

    async def receive() -> Any:
        await asyncio.sleep(0 if len(messages) == 2 else 0.1)
        return messages.pop()

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
