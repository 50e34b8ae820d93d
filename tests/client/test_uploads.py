"""Files that the client sends, over connections and to services that fail."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_in_process import App, app_in_process

from evalsvc.client import Client
from evalsvc.errors import CheckpointChanged, Forbidden, InvalidRequest, ServiceUnreachable


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[tuple[App, Client]]:
    """An application that takes uploads, and a client that waits for nothing."""
    with (
        app_in_process(tmp_path / "taking", upload_bytes=10_000_000) as app,
        Client("http://evalsvc", transport=app.transport) as client,
    ):
        yield app, client


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.client.uploads.PART_BYTES", 1000)
    monkeypatch.setattr("evalsvc.client.uploads.FIRST_DELAY", 0.0)
    monkeypatch.setattr("evalsvc.client.uploads.LONGEST_DELAY", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_7.pt"
    path.write_bytes(bytes(range(256)) * 20)
    return path


def uploaded(app: App) -> bytes:
    """What the spool has of the only checkpoint."""
    [path] = (app.settings.data_path / "spool" / "1").iterdir()
    return path.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_a_file_is_sent_and_posted(taking: tuple[App, Client], file: Path) -> None:
    app, client = taking
    said: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"model": "open_lm_160m", "upload": True, "report": lambda *report: said.append(report)}
    posted = client.submit("run-a", 25, str(file), suites=["loss"], **options)
    assert uploaded(app) == file.read_bytes()
    assert said == [("reading", 5120, 5120), *(("sending", offset, 5120) for offset in range(0, 5120, 1000))]
    assert client.submit("run-a", 25, str(file), suites=["loss"], **options) == posted
    assert len(said) == 8, "what the service has is not sent again"
    assert client.uploads() == []


@pytest.mark.usefixtures("small_parts")
def test_an_upload_goes_on_after_every_failure(
    taking: tuple[App, Client], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests and answers are lost, a proxy answers in the place of the service, parts are damaged on the way."""
    app, client = taking
    handle, count = app.transport.handle_request, 0

    def unreliable(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise httpx.ConnectError("connection refused")
        if count % 7 == 0:
            handle(request)
            raise httpx.ReadError("connection reset")
        if count % 11 == 0:
            return httpx.Response(502, text="<html>Bad Gateway</html>")
        if count % 13 == 0 and request.method == "PATCH":
            damaged = httpx.Request("PATCH", request.url, headers=request.headers, content=request.content[::-1])
            return handle(damaged)
        return handle(request)

    upload = client.upload(str(file))
    client.delete_upload(upload.id)
    monkeypatch.setattr(app.transport, "handle_request", unreliable)
    upload = client.upload(str(file))
    assert upload.complete
    assert count > 8
    monkeypatch.undo()
    client.submit("run-a", 25, str(file), model="open_lm_160m", upload=True)
    assert uploaded(app) == file.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_another_process_finds_the_upload_and_goes_on(taking: tuple[App, Client], file: Path) -> None:
    app, client = taking

    class Killed(Exception):
        pass

    def die(what: str, done: int, size: int) -> None:
        if (what, done) == ("sending", 3000):
            raise Killed

    with pytest.raises(Killed):
        client.upload(str(file), report=die)
    [half] = client.uploads()
    assert (half.offset, half.complete, half.name) == (3000, False, "epoch_7.pt")
    with Client("http://evalsvc", transport=app.transport) as other:
        assert other.upload(str(file)).id == half.id


@pytest.mark.usefixtures("small_parts")
def test_an_upload_is_given_up_in_time(taking: tuple[App, Client], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, client = taking
    handle = app.transport.handle_request

    def refuse(request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            raise httpx.ConnectError("connection refused")
        return handle(request)

    monkeypatch.setattr(app.transport, "handle_request", refuse)
    with pytest.raises(ServiceUnreachable, match="connection refused"):
        client.upload(str(file), patience=0.05)
    assert client.uploads()[0].offset == 0, "what was sent stays"


def test_a_service_without_uploads_says_so(file: Path, tmp_path: Path) -> None:
    with (
        app_in_process(tmp_path / "data") as app,
        Client("http://evalsvc", transport=app.transport) as client,
        pytest.raises(Forbidden, match="EVALSVC_UPLOAD_BYTES is 0"),
    ):
        client.submit("run-a", 25, str(file), upload=True)


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
    _, client = taking
    with pytest.raises(InvalidRequest, match="is a folder"):
        client.submit("run-a", 25, str(tmp_path), upload=True)
    with pytest.raises(InvalidRequest, match="model is missing"):
        client.submit("run-a", 25, str(file), upload=True)
    with pytest.raises(CheckpointChanged, match="was announced"):
        client.upload(str(file), sha256="0" * 64)
    assert client.uploads() == []


def test_a_proxy_that_refuses_parts_is_named(
    taking: tuple[App, Client], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client = taking
    handle = app.transport.handle_request

    def proxy(request: httpx.Request) -> httpx.Response:
        too_large = httpx.Response(413, text="<html>Request Entity Too Large</html>")
        return too_large if request.method == "PATCH" else handle(request)

    monkeypatch.setattr(app.transport, "handle_request", proxy)
    with pytest.raises(InvalidRequest, match="client_max_body_size"):
        client.upload(str(file))
