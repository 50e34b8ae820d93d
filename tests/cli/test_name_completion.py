"""Names that the shell completes, asked of the service."""

import socket
import time
from threading import Event, Thread
from typing import Any

import pytest
from queue_steps import enter, evaluate_whole, metric, submission, suite
from typer.testing import CliRunner

from evalsvc.cli.options import DEADLINE
from evalsvc.cli.program import app


def complete(words: str, shell: str = "bash") -> str:
    """Return what a shell gets that completes the last word."""
    environment = {
        "_EVALSVC_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    return CliRunner().invoke(app, prog_name="evalsvc", env=environment).output


@pytest.fixture
def measured(command: Any, service: Any) -> None:
    enter(service.store, submission(5), suite())
    enter(service.store, submission(5, run="run-b"))
    evaluate_whole(service.store, metric(2.0), metric(2.5, "loss/image"), metric(1.0, "other/$(touch hacked)"))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("evalsvc history ru", ["run-a", "run-b"]),
        ("evalsvc runs run-b", ["run-b"]),
        ("evalsvc history run-a --metric loss/i", ["loss/image"]),
        ("evalsvc history run-a run-b --metric ", ["loss/image", "loss/text"]),
        ("evalsvc compare run-a@5 run-b@5 --task l", ["loss"]),
        ("evalsvc checkpoints run-a@", ["run-a@5"]),
        ("evalsvc submit run-a 5 file --suite text-qu", ["text-quick"]),
        ("evalsvc history x", []),
    ],
)
def test_names_of_the_service_are_offered(words: str, offered: list[str]) -> None:
    assert sorted(complete(words).split()) == offered


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_name_that_a_shell_would_run_is_not_offered(shell: str) -> None:
    """Whoever may post names the metrics, and a shell evaluates what it is offered."""
    assert "hacked" not in complete("evalsvc history run-a --metric ", shell)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://10.255.255.1:80", "no address", "https://127.0.0.1:9"])
def test_where_nothing_answers_nothing_is_offered(command: Any, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("EVALSVC_URL", url)
    begun = time.monotonic()
    assert complete("evalsvc history ru") == "\n"
    assert time.monotonic() - begun < DEADLINE + 1


def test_a_service_that_drips_is_not_waited_for(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte comes in time, and the answer never: the shell would hang."""
    ended = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("EVALSVC_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        dripping = Thread(target=drip, args=(server, ended))
        dripping.start()
        begun = time.monotonic()
        assert complete("evalsvc history ru") == "\n"
        ended.set()
        dripping.join()
    assert time.monotonic() - begun < DEADLINE + 1


def drip(server: socket.socket, ended: Event) -> None:
    """Answer one request with a byte every 50 ms."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.05):
            connection.sendall(b" ")
