"""What several commands share: files to write, devices, and names that the shell completes."""

import socket
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, metric, submission, suite
from typer.testing import CliRunner

from evalsvc.cli.options import DEADLINE, write_output
from evalsvc.cli.program import app
from evalsvc.errors import InvalidRequest


def test_a_file_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    """`doctor layout` and `verify` have computed for minutes by then."""
    write_output("--findings", tmp_path / "a.json", "{}\n")
    assert (tmp_path / "a.json").read_text() == "{}\n"
    with pytest.raises(InvalidRequest, match=rf"--findings {tmp_path} cannot be written: is a directory"):
        write_output("--findings", tmp_path, "{}\n")


@pytest.mark.parametrize(
    "line",
    [
        "run loss --checkpoint a.pt",
        "gate a.pt --baseline b.pt --until decided --suite miniature",
        "verify machine",
        "verify --checkpoint a.pt --suite loss",
        "layout a.pt --pairs p.jsonl --codebook-size 64",
    ],
)
def test_a_device_that_is_not_there_is_wrong_use_of_every_command(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """`cuda:0` without a card was a traceback of 90 lines with the exit code of a checkpoint that is bad."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("EVALSVC_DEVICES", "cuda:1")
    for option, words in (
        ("--device cuda:0", "--device: there is no device 'cuda:0'; this machine has 0 CUDA cards; use cpu"),
        ("--device cuda", "--device: there is no device 'cuda'"),
        ("--device gpu", "--device names 'gpu', which is not a device; use cpu, or a card such as cuda:0"),
        ("", "EVALSVC_DEVICES: there is no device 'cuda:1'"),
    ):
        result = evalsvc(f"{line} {option}")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert result.err.startswith(f"error: {words}")


def complete(words: str, shell: str = "bash") -> str:
    environment = {"_EVALSVC_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return CliRunner().invoke(app, prog_name="evalsvc", env=environment).output


@pytest.fixture
def measured(service: Any) -> None:
    enter(service.store, submission(5), suite())
    enter(service.store, submission(5, run="run-b"))
    evaluate_whole(service.store, metric(2.0), metric(2.5, "loss/image"), metric(1.0, "other/$(touch hacked)"))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("history ru", ["run-a", "run-b"]),
        ("runs run-b", ["run-b"]),
        ("history run-a --metric loss/i", ["loss/image"]),
        ("history run-a run-b --metric ", ["loss/image", "loss/text"]),
        ("compare run-a@5 run-b@5 --task l", ["loss"]),
        ("checkpoints run-a@", ["run-a@5"]),
        ("submit run-a 5 file --suite text-qu", ["text-quick"]),
        ("history x", []),
    ],
)
def test_names_of_the_service_are_offered(words: str, offered: list[str]) -> None:
    assert sorted(complete(f"evalsvc {words}").split()) == offered


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_name_that_a_shell_would_run_is_not_offered(shell: str) -> None:
    """Whoever may post names the metrics, and a shell evaluates what it is offered."""
    assert "hacked" not in complete("evalsvc history run-a --metric ", shell)


def drip(server: socket.socket, ended: Event) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.05):
            connection.sendall(b" ")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://10.255.255.1:80", "no address", "https://127.0.0.1:9", "dripping"]
)
def test_where_nothing_answers_in_time_nothing_is_offered(
    command: Any, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Where every byte comes in time, and the answer never, the shell would hang."""
    ended = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = Thread(target=drip, args=(server, ended))
        if url == "dripping":
            dripping.start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("EVALSVC_URL", url)
        begun = time.monotonic()
        assert complete("evalsvc history ru") == "\n"
        assert time.monotonic() - begun < DEADLINE + 1
        ended.set()
        if dripping.ident is not None:
            dripping.join()
