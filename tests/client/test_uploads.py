"""Files that the client sends, over connections and to services that fail."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from app_in_process import App, app_in_process

from evalsvc.client import Client
from evalsvc.errors import CheckpointChanged, InvalidRequest, ServiceUnreachable

Handle = Callable[[httpx2.Request], httpx2.Response]
Between = Callable[[Callable[[httpx2.Request, Handle], httpx2.Response]], None]


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[tuple[App, Client]]:
    """An application that takes uploads, and a client that waits for nothing."""
    with (
        app_in_process(tmp_path / "taking", upload_bytes=10_000_000) as app,
        Client("http://evalsvc", transport=app.transport) as client,
    ):
        yield app, client


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.client.uploads.PART_BYTES", 1000)
    monkeypatch.setattr("evalsvc.client.uploads.SMALLEST_PART", 100)
    monkeypatch.setattr("evalsvc.client.uploads.FIRST_DELAY", 0.0)
    monkeypatch.setattr("evalsvc.client.uploads.LONGEST_DELAY", 0.0)


@pytest.fixture
def between(taking: tuple[App, Client], monkeypatch: pytest.MonkeyPatch) -> Between:
    """Puts a function between client and application, which gets each request and what answers it."""
    transport = taking[0].transport
    handle = transport.handle_request
    return lambda answer: monkeypatch.setattr(transport, "handle_request", lambda request: answer(request, handle))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_7.pt"
    path.write_bytes(bytes(range(256)) * 20)
    return path


def uploaded(app: App) -> bytes:
    """What the spool has of the only checkpoint."""
    [path] = (app.settings.data_path / "spool" / "1").iterdir()
    return path.read_bytes()


def test_a_file_is_sent_and_posted(taking: tuple[App, Client], file: Path) -> None:
    app, client = taking
    said: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"model": "open_lm_160m", "upload": True, "report": lambda *report: said.append(report)}
    posted = client.submit("run-a", 25, str(file), suites=["loss"], **options)
    assert uploaded(app) == file.read_bytes()
    read = [("reading", min(done, 5120), 5120) for done in range(1000, 6001, 1000)]
    assert said == [*read, *(("sending", offset, 5120) for offset in range(0, 5120, 1000))]
    assert client.submit("run-a", 25, str(file), suites=["loss"], **options) == posted
    assert said[12:] == read, "what the service has is not sent again"


def test_an_upload_goes_on_after_every_failure(taking: tuple[App, Client], file: Path, between: Between) -> None:
    """Requests and answers are lost, a proxy answers in the place of the service, parts are damaged on the way."""
    app, client = taking
    count = 0

    def unreliable(request: httpx2.Request, handle: Handle) -> httpx2.Response:
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise httpx2.ConnectError("connection refused")
        if count % 7 == 0:
            handle(request)
            raise httpx2.ReadError("connection reset")
        if count % 11 == 0:
            return httpx2.Response(502, text="<html>Bad Gateway</html>")
        if count % 13 == 0 and request.method == "PATCH":
            damaged = httpx2.Request("PATCH", request.url, headers=request.headers, content=request.content[::-1])
            return handle(damaged)
        return handle(request)

    between(unreliable)
    uri = client.upload(str(file))
    assert count > 13
    between(lambda request, handle: handle(request))
    client.submit("run-a", 25, uri, model="open_lm_160m")
    assert uploaded(app) == file.read_bytes()


def test_a_connection_that_breaks_within_every_part_makes_progress(
    taking: tuple[App, Client], file: Path, between: Between
) -> None:
    """A part with a checksum counts as a whole, so a connection that carries 300 bytes needs smaller parts."""
    sent = []

    def narrow(request: httpx2.Request, handle: Handle) -> httpx2.Response:
        sent.append(len(request.content))
        if len(request.content) > 300:
            raise httpx2.WriteError("broken pipe")
        return handle(request)

    between(narrow)
    taking[1].upload(str(file))
    assert sum(sent) < 5 * 5120


def test_another_process_finds_the_upload_and_goes_on(taking: tuple[App, Client], file: Path) -> None:
    app, client = taking

    class Killed(Exception):
        pass

    def die(what: str, done: int, size: int) -> None:
        if (what, done) == ("sending", 3000):
            raise Killed

    with pytest.raises(Killed):
        client.upload(str(file), report=die)
    said: list[tuple[str, int, int]] = []
    with Client("http://evalsvc", transport=app.transport) as other:
        other.upload(str(file), report=lambda *report: said.append(report))
    assert [done for what, done, _ in said if what == "sending"] == [3000, 4000, 5000]


def test_an_upload_is_given_up_in_time(taking: tuple[App, Client], file: Path, between: Between) -> None:
    def refuse(request: httpx2.Request, handle: Handle) -> httpx2.Response:
        if request.method == "PATCH":
            raise httpx2.ConnectError("connection refused")
        return handle(request)

    between(refuse)
    with pytest.raises(ServiceUnreachable, match="connection refused"):
        taking[1].upload(str(file), patience=0.05)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(taking: tuple[App, Client], tmp_path: Path) -> None:
    """250 MB were read for seconds, and refused then."""
    _app, client = taking
    large, said = tmp_path / "large.pt", []
    with large.open("wb") as stream:
        stream.truncate(10_000_001)
    for send in (client.upload, partial(client.submit, "run-a", 25, model="open_lm_160m", upload=True)):
        with pytest.raises(InvalidRequest, match=r"large.pt has 10,000,001 bytes, .* together may take 10,000,000"):
            send(str(large), report=lambda *report: said.append(report))
    assert said == []


def test_a_file_that_cannot_be_sent(taking: tuple[App, Client], file: Path, tmp_path: Path) -> None:
    app, client = taking
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere", "no such file.*; "),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "pipe", "no file on a disk"),
    ):
        with pytest.raises(InvalidRequest, match=f"{path}.*{words}"):
            client.submit("run-a", 25, str(path), upload=True)
    with pytest.raises(InvalidRequest, match="model is missing"):
        client.submit("run-a", 25, str(file), upload=True)
    with pytest.raises(CheckpointChanged, match="was announced"):
        client.upload(str(file), sha256="0" * 64)
    assert os.listdir(app.settings.uploads_path) == []


@pytest.mark.parametrize(
    ("what", "done", "size"), [("reading", 2000, 2500), ("sending", 2000, 2500), ("sending", 5000, 9000)]
)
def test_a_file_that_is_written_to_is_noticed(
    taking: tuple[App, Client], file: Path, what: str, done: int, size: int
) -> None:
    _app, client = taking

    def write(*report: object) -> None:
        if report == (what, done, 5120):
            os.truncate(file, size)

    with pytest.raises(CheckpointChanged, match="once it is complete"):
        client.upload(str(file), report=write)


def test_a_proxy_that_refuses_parts_is_named(taking: tuple[App, Client], file: Path, between: Between) -> None:
    too_large = httpx2.Response(413, text="<html>Request Entity Too Large</html>")
    between(lambda request, handle: too_large if request.method == "PATCH" else handle(request))
    with pytest.raises(InvalidRequest, match="client_max_body_size"):
        taking[1].upload(str(file))
