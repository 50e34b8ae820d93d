"""Connections that are held for nothing, on a real port."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from evalsvc.api import connections
from evalsvc.api.connections import PatientProtocol
from evalsvc.api.server import listen


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server whose application answers after 0.6 s, and which waits 0.3 s for the head of a request."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        if scope["type"] != "http":
            return
        await asyncio.sleep(0.6)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, http=PatientProtocol, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def closed_after(connection: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server closed the connection, to which a byte of `drip` is sent every 0.1 s."""
    begun = time.monotonic()
    connection.settimeout(0.1)
    for place in range(100):
        try:
            if not connection.recv(100):
                return time.monotonic() - begun
        except TimeoutError:
            if place < len(drip):
                connection.sendall(drip[place : place + 1])
        except OSError:
            return time.monotonic() - begun
    pytest.fail("the connection is held")


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert 0.2 < closed_after(connection) < 5


def test_a_head_that_drips_is_given_up(port: int) -> None:
    """Slow loris: a byte now and then holds a connection for ever, and a few hundred hold all."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert closed_after(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 60) < 5


def test_the_rest_of_a_body_that_nobody_reads_is_given_up(port: int) -> None:
    """Who is turned away at the door could else go on sending a body, and hold the connection."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert closed_after(connection, b"a" * 99) < 5


def test_an_answer_may_take_longer(port: int) -> None:
    """It is the service then that takes its time."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        for _ in range(2):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"ok"):
                answer += connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.1)


def test_a_head_that_is_too_long_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(b"GET /" + b"a" * 200_000)
        except OSError:
            return
        assert connection.recv(1000).startswith((b"HTTP/1.1 400", b""))
