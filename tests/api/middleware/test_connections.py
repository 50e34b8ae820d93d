"""Connections that are held for nothing, on a real port."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
import uvicorn

from evalsvc.api.middleware import connections
from evalsvc.api.middleware.connections import TimeoutProtocol
from evalsvc.api.server import listen

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server whose application answers after 0.6 s, and which waits 0.3 s for the head of a request."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.6)
        await hello(scope, receive, send)

    with served(app) as port:
        yield port


@contextmanager
def served(app: Any, protocol: Any = TimeoutProtocol) -> Iterator[int]:
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
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


@pytest.mark.parametrize("drip", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 60], ids=len)
def test_a_head_that_does_not_come_is_given_up(port: int, drip: bytes) -> None:
    """Slow loris: a byte now and then holds a connection for ever, and a few hundred hold all."""
    with connect(port) as connection:
        assert 0.2 < closed_after(connection, drip) < 5


def test_the_rest_of_a_body_that_nobody_reads_is_given_up(port: int) -> None:
    """Who is turned away at the door could else go on sending a body, and hold the connection."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with connect(port) as connection:
        for _ in range(2):  # an answer may take longer: it is the service then that takes its time
            assert ask(connection).startswith(b"HTTP/1.1 200")
            time.sleep(0.1)
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert closed_after(connection, b"a" * 99) < 5


def test_https_says_what_to_do(port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn says only that a request is invalid; a flood of connections would fill the log with warnings."""
    monkeypatch.setattr(TimeoutProtocol, "_warned_at", -1e9)
    context = ssl.create_default_context()
    for _ in range(2):
        with connect(port) as connection, pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
            context.wrap_socket(connection, server_hostname="localhost")
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 1
    assert messages[0].startswith("a client at 127.0.0.1 speaks https, and the service listens by http; give the ")


def test_bytes_like_those_of_https_are_refused_and_harm_nobody(port: int) -> None:
    for parts in ((b"\x16\x03",), (b"\x16", b"\x03\x01\x00"), (b"GET / HTTP/1.1\r\nA: ", b"\x16\x03\r\n\r\n")):
        with connect(port) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.05)
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
        time.sleep(0.05)
        connection.sendall(b"\x16\x03")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200"), "a body may have these bytes"


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ninety of them held every connection to the database, and each one of the service's for ever."""
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.3)
    ended, sent = threading.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def send_without_end() -> None:
            nonlocal sent
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
                sent += 10_000
                await asyncio.sleep(0)  # to a client that went away, to send takes no time

        sending = asyncio.ensure_future(send_without_end())
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        ended.set()

    with served(app) as port, connect(port) as connection:
        connection.sendall(GET)
        assert ended.wait(20)
    assert sent < 8_000_000, "of what nobody reads little is made"


@pytest.mark.usefixtures("many_cases")
def test_a_client_that_reads_slowly_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 1.0)
    size = 2_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for _ in range(size // 10_000):
            await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with served(app) as port, connect(port) as connection:
        connection.sendall(GET)
        begun, read = time.monotonic(), 0
        while read < size:
            piece = connection.recv(20_000)
            assert piece
            read += len(piece)
            time.sleep(0.02)
        assert time.monotonic() - begun > 1.5


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def ask(connection: socket.socket) -> bytes:
    connection.sendall(GET)
    answer = b""
    while not answer.endswith((b"ok", b"}")):
        answer += connection.recv(10_000)
    return answer


def test_an_address_has_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client that held 500 had all others answered by 503."""
    monkeypatch.setattr(connections, "PER_ADDRESS", 2)
    with served(hello) as port, ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(port)) for _ in range(3))
        assert ask(first).endswith(b"ok")
        assert ask(second).endswith(b"ok")
        refused = ask(third)
        assert refused.startswith(b"HTTP/1.1 429")
        assert b'"code":"rate_limited"' in refused
        assert b"2 connections from 127.0.0.1 are open, which is the limit for an address; close some" in refused
        assert third.recv(100) == b"", "it is closed"
        assert ask(first).endswith(b"ok"), "those that are there go on"
        second.close()
        deadline, answer = time.monotonic() + 10, b""
        while not answer.startswith(b"HTTP/1.1 200"):  # that a connection was closed is known a moment later
            assert time.monotonic() < deadline, answer
            with connect(port) as fourth:
                answer = ask(fourth)


def test_a_trusted_proxy_has_as_many_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PER_ADDRESS", 1)
    monkeypatch.setattr(connections, "CONNECTIONS", 3)
    proxies = (ip_network("10.0.0.0/8"), ip_network("127.0.0.1"))
    with served(hello, partial(TimeoutProtocol, proxies=proxies)) as port, ExitStack() as stack:
        for status in (200, 200, 200, 503):
            answer = ask(stack.enter_context(connect(port)))
            assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert b"3 connections to the service are open, which is the limit" in answer


@pytest.mark.usefixtures("many_cases")
def test_connections_that_are_refused_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PER_ADDRESS", 0)
    monkeypatch.setattr(connections, "REFUSED", 1)
    with served(hello) as port, ExitStack() as stack:
        first, second = (stack.enter_context(connect(port)) for _ in range(2))
        assert closed_after(second) < 1
        assert closed_after(first) < 5, "nor do they last"


@pytest.mark.parametrize(("chunks", "size", "read"), [(900, 1, True), (5000, 100, True), (5000, 1, False)])
def test_a_body_in_tiny_chunks_is_given_up(chunks: int, size: int, read: bool) -> None:
    """A chunk of one byte takes as long as one of a kilobyte: eight such bodies stopped all probes for 35 s."""
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            received.append(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    with served(app) as port, connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = b""
        with suppress(OSError):  # the server may have closed the connection
            client.sendall(b"%x\r\n%s\r\n" % (size, b"a" * size) * chunks + b"0\r\n\r\n")
            answer = client.recv(100)
        assert answer.startswith(b"HTTP/1.1 200") is read
    assert (len(b"".join(received)) == chunks * size) is read
