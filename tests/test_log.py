"""Logs can be read by machines, say what they are about, and hold no secrets."""

import asyncio
import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, app_in_process
from service_process import ServiceProcess

from evalsvc.access_tokens import new_token
from evalsvc.api.middleware.request_ids import RequestIds
from evalsvc.errors import InvalidRequest
from evalsvc.log import about, configure_logs, without_secrets
from evalsvc.store.tokens import create_token

log = logging.getLogger("evalsvc.test")

Configure = Callable[..., io.StringIO]


@pytest.fixture
def logging_as(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configure this process; the stream that it logs to."""
    root, package = logging.getLogger(), logging.getLogger("evalsvc")
    before = (list(root.handlers), root.level, package.level)
    stream = io.StringIO()

    def begin(form: str = "json", level: str = "info") -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs(form, level)
        return stream

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    yield begin
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    package.setLevel(before[2])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object(logging_as: Configure) -> None:
    stream = logging_as()
    with about(evaluation=1, worker="tls://a"):
        log.info("one\ntwo %s", "three")
    log.warning("%s ran longer than %s s and is stopped", "evaluation-40/shard-7/attempt-2", 5)
    line, named = lines(stream)
    assert (named["evaluation"], named["shard"], named["attempt"]) == (40, 7, 2), "the ids of the attempt in its text"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    said = {"level": "info", "logger": "evalsvc.test", "message": "one\ntwo three"}
    assert line == {**said, "evaluation": 1, "worker": "tls://a"}


def test_a_line_for_people(logging_as: Configure) -> None:
    """A name that a client chose could look like another line, or move the terminal of who reads."""
    stream = logging_as("text")
    with about(evaluation=1, worker="two words"):
        log.warning("no run is named %s", "x\n2026 ERROR evalsvc: all is lost\x1b[2J")
    begin, end = r'\S+Z WARNING evalsvc\.test evaluation=1 worker="two words": ', r"\\x1b\[2J\n"
    assert re.fullmatch(begin + r"no run is named x\\x0a2026 ERROR evalsvc: all is lost" + end, stream.getvalue())


def test_what_libraries_and_interpreters_write_are_lines_too(logging_as: Configure) -> None:
    """Dask logs what it repeats as an error, some of it without a message, and by handlers of its own."""
    dask = logging.getLogger("distributed.test")
    dask.addHandler(logging.StreamHandler(sys.stderr))
    dask.propagate = False
    stream = logging_as()
    dask.error("")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("soon gone", stacklevel=1)
    thread = threading.Thread(target=lambda: int("many"))
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("last"), None)
    said = [(line["level"], line["logger"]) for line in lines(stream)]
    assert said == [("warning", "distributed.test"), ("warning", "py.warnings"), *[("error", "evalsvc")] * 2]
    assert lines(stream)[0]["message"].startswith("an operation of Dask failed")
    assert "invalid literal for int()" in lines(stream)[2]["trace"]


def test_lines_for_the_journal_have_priorities(logging_as: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    stream = logging_as("text")
    log.warning("look if it comes again")
    log.info("all goes well")
    assert [line[:3] for line in stream.getvalue().splitlines()] == ["<4>", "<6>"]


def test_threads_and_contexts_are_apart(logging_as: Configure) -> None:
    """The line of one shard must not have the ids of another one that runs beside it."""
    stream = logging_as()
    inside, outside = threading.Event(), threading.Event()

    def work() -> None:
        with about(shard=1):
            inside.set()
            assert outside.wait(10)
            log.info("theirs")

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    log.info("ours")
    outside.set()
    thread.join()
    assert {line["message"]: line.get("shard") for line in lines(stream)} == {"ours": None, "theirs": 1}


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_blotted_out(logging_as: Configure, form: str) -> None:
    stream, token = logging_as(form), new_token()
    try:
        raise ValueError(f"postgresql://me:hunter2@host/x refused {token}")
    except ValueError:
        with about(address="postgresql://me:hunter2@host/x"):
            log.exception("asked with %s", token)
    assert "hunter2" not in stream.getvalue()
    assert token not in stream.getvalue()
    assert "evalsvc_***" in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert form == "text" or len(lines(stream)) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:a@b@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a@b/c@host/x", "postgresql://me:***@host/x"),
        ("postgresql://:secret@host", "postgresql://:***@host"),
        ("https://host:8321/v1/runs/a@b", "https://host:8321/v1/runs/a@b"),
        ('{"a": "x://b:c", "mail": "d@e"}', '{"a": "x://b:c", "mail": "d@e"}'),
    ],
)
def test_passwords_in_addresses(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_levels_and_once_however_often_it_is_configured(logging_as: Configure) -> None:
    """Libraries tell of their own lives at the lower levels."""
    stream = logging_as(level="info")
    logging_as(level="info")
    logging.getLogger("alembic").info("theirs")
    log.debug("too much")
    log.info("ours")
    assert [line["message"] for line in lines(stream)] == ["ours"]


@pytest.mark.parametrize(
    ("form", "level", "words"),
    [
        ("xml", "info", "EVALSVC_LOG_FORMAT is 'xml'.*available: json, text"),
        ("json", "warn", "EVALSVC_LOG_LEVEL is 'warn'.*did you mean 'warning'"),
    ],
)
def test_what_cannot_be_configured(form: str, level: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        configure_logs(form, level)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data") as app:
        yield app


def test_a_request_has_a_name(logging_as: Configure, app: App) -> None:
    stream = logging_as()
    given = app.http.get("/v1/runs?token=secret", headers={"X-Request-ID": "trainer-7.3"})
    made = app.http.get("/v1/nothing")
    assert given.headers["x-request-id"] == "trainer-7.3"
    assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])
    requests = [line for line in lines(stream) if "request" in line]
    assert [(line["request"], line["path"], line["status"]) for line in requests] == [
        ("trainer-7.3", "/v1/runs", 422),
        (made.headers["x-request-id"], "/v1/nothing", 404),
    ]
    assert "secret" not in stream.getvalue()
    # Names that are not taken over would stand in logs and headers of others.
    for name in ("", "a b", "x" * 129, "a\u00ff", "../x", "a;b"):
        answer = app.http.get("/healthz", headers={"X-Request-ID": name.encode("latin-1")})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_request_says_who_asked(logging_as: Configure, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the token, never by its text, in every line of the request; a token that is refused has none."""

    def told(*_: object) -> list[object]:
        log.warning("told")
        return []

    monkeypatch.setattr("evalsvc.api.routes.runs.runs_view", told)
    with app.store.transaction() as session:
        token = create_token(session, "trainer", "read")
    stream = logging_as()
    app.http.get("/v1/runs", headers={"Authorization": f"Bearer {token}"})
    app.http.post("/v1/prune", headers={"Authorization": f"Bearer {token}"})
    app.http.get("/v1/runs", headers={"Authorization": f"Bearer {new_token()}"})
    app.http.get("/healthz", headers={"Authorization": f"Bearer {token}"})
    requests = [line for line in lines(stream) if "request" in line]
    assert [(line.get("path"), line.get("status"), line.get("token"), line["client"]) for line in requests] == [
        (None, None, "trainer", "127.0.0.1"),
        ("/v1/runs", 200, "trainer", "127.0.0.1"),
        ("/v1/prune", 403, "trainer", "127.0.0.1"),
        ("/v1/runs", 401, None, "127.0.0.1"),
        ("/healthz", 200, None, "127.0.0.1"),
    ]
    assert token not in stream.getvalue()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        *((host, host) for host in ("203.0.113.9", "2001:db8::1", "fe80::1%eth0")),
        *((host, None) for host in ("evil\nline", "f" * 4000, "", None)),
    ],
)
def test_what_is_logged_as_an_address(logging_as: Configure, host: str | None, shown: str | None) -> None:
    """A proxy that is trusted passes on what its client wrote."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        pass

    stream = logging_as()
    client = None if host is None else (host, 1)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": client}
    asyncio.run(RequestIds(app)(scope, None, send))  # type: ignore[arg-type]
    assert [line.get("client") for line in lines(stream)] == [shown]


@pytest.mark.usefixtures("child_process")
def test_a_service_and_its_workers(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is said of a shard, by either, can be found by its ids."""
    monkeypatch.setenv("EVALSVC_LOG_FORMAT", "json")
    monkeypatch.setenv("EVALSVC_LOG_LEVEL", "info")
    with ServiceProcess(tmp_path / "data", "--devices", "cpu") as service:
        service.put_suite("broken", {"kind": "loss", "data": "/nowhere.jsonl"})
        (evaluation,) = service.post("run-a", 1, weights, ["broken"])
        assert service.wait(evaluation)["state"] == "failed"
    found = [json.loads(line) for line in service.log.read_text().splitlines()]
    ours = [line for line in found if line.get("evaluation") == evaluation]
    assert all({"shard", "attempt"} <= set(line) for line in ours)
    said = {line["logger"] for line in ours}
    assert said == {"evalsvc.service.coordinator", "evalsvc.service.shard_queue", "evalsvc.cluster.nanny"}
    workers = [line for line in ours if line["logger"] == "evalsvc.cluster.nanny"]
    assert [line["message"].split(" ")[0] for line in workers] == ["begun", "ended"]
    assert all(line["worker"].startswith("tls://127.0.0.1:") for line in workers)
    posted = [line for line in found if line.get("path") == "/v1/checkpoints"]
    assert [(line["method"], line["status"]) for line in posted] == [("POST", 201)]
