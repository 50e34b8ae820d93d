"""Posting checkpoints to a service that is there, down, busy, or something else."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_trainings import tiny_recipe
from trainer import posting
from trainer.posting import Poster, Target

from evalsvc.api.schemas import CheckpointInput
from evalsvc.errors import Conflict, InvalidRequest
from train import train

pytestmark = pytest.mark.usefixtures("one_thread")

CHANGES: dict[str, Any] = {"ema": [0.5], "checkpoint_steps": [3]}
POSTED = {"checkpoint": {"id": 1}, "evaluations": []}


@dataclass
class Service:
    """A server that answers posts of checkpoints with `answers` in turn, and with the last one from then on."""

    answers: list[tuple[int, Any]] = field(default_factory=lambda: [(201, POSTED)])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    address: str = ""

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                service.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                service.tokens.append(self.headers["Authorization"])
                status, content = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/v1/other")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(posting, "LONGEST_WAIT", 0.1)


def train_and_post(folder: Path, server: str, patience: float = 10.0, **target: Any) -> Poster:
    recipe = tiny_recipe(folder / "data", **CHANGES)
    with Poster(Target(server, "mine", **target), folder / "run", patience) as poster:
        train(recipe, folder / "run", on_checkpoint=poster.announce)
    return poster


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_every_checkpoint_and_average_is_posted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are those that the service takes, and the layout is next to the checkpoints.

    A token with the line break of its file ended the thread that posts.
    """
    monkeypatch.setenv("EVALSVC_TOKEN", "secret\n")
    service = Service()
    with service.running() as address:
        poster = train_and_post(tmp_path, address + "/", suites=("losses",))
        assert poster.waiting() == []
        train_and_post(tmp_path, address, suites=("losses",))
    parsed = [CheckpointInput.model_validate(body) for body in service.bodies]
    assert [(body.run, body.step, body.variant, Path(body.uri).name) for body in parsed] == [
        ("mine", 3, "ema_0.5", "ema_0.5_1_0.pt"),
        ("mine", 3, "raw", "epoch_0.pt"),
        ("mine", 6, "ema_0.5", "ema_0.5_1_1.pt"),
        ("mine", 6, "raw", "epoch_1.pt"),
    ]
    assert {str(body.layout) for body in parsed} == {str(tmp_path / "run" / "layout.yaml")}
    assert all(body.suites == ["losses"] and Path(body.uri).exists() for body in parsed)
    assert set(service.tokens) == {"Bearer secret"}


def test_a_service_that_is_down_costs_no_time_and_gets_the_rest_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with free_port() as port:
        begun = time.monotonic()
        poster = train_and_post(tmp_path, f"http://127.0.0.1:{port}", patience=0.2)
        assert time.monotonic() - begun < 5
    assert len(poster.waiting()) == 4
    assert capsys.readouterr().out.count("did not answer; run the same command again") == 4
    service = Service()
    with service.running() as address:
        assert train_and_post(tmp_path, address).waiting() == []
    assert len(service.bodies) == 4


def test_another_run_gets_the_checkpoints_too(tmp_path: Path) -> None:
    service = Service()
    with service.running() as address:
        train_and_post(tmp_path, address)
        with Poster(Target(address, "other"), tmp_path / "run") as poster:
            train(tiny_recipe(tmp_path / "data", **CHANGES), tmp_path / "run", on_checkpoint=poster.announce)
    assert [body["run"] for body in service.bodies] == ["mine"] * 4 + ["other"] * 4


def test_a_folder_of_another_recipe_is_not_posted(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "data"), tmp_path / "run")
    service = Service()
    with service.running() as address, pytest.raises(Conflict):
        train_and_post(tmp_path, address)
    assert service.bodies == []


def test_a_busy_service_is_asked_again(tmp_path: Path) -> None:
    service = Service([(503, {"detail": "starting"}), (429, {"detail": "the run is behind"}), (201, POSTED)])
    with service.running() as address:
        assert train_and_post(tmp_path, address).waiting() == []
    assert len(service.bodies) == 6


def test_a_service_that_hangs_does_not_hold_up_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections, and never answers."""
    monkeypatch.setattr(posting, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        poster = train_and_post(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.1)
        assert time.monotonic() - begun < 5
    assert len(poster.waiting()) == 4
    assert (tmp_path / "run" / "checkpoints" / "epoch_1.pt").exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((403, {"detail": "not below EVALSVC_ROOTS"}), "not below EVALSVC_ROOTS (HTTP 403)"),
        ((404, b"<html>"), "what answered is no evalsvc; correct --server (HTTP 404)"),
        ((302, b""), "what answered is no evalsvc; correct --server (HTTP 302)"),
        ((200, b"<html>"), "what answered is no evalsvc; correct --server"),
        ((200, b"[" * 50_000), "what answered is no evalsvc; correct --server"),
    ],
)
def test_what_is_refused_is_listed_and_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: tuple[int, Any], reason: str
) -> None:
    """A redirect is not followed: urllib would send the token along, and take any page for an answer."""
    service = Service([answer])
    with service.running() as address:
        poster = train_and_post(tmp_path, address)
    assert len(service.bodies) == len(poster.waiting()) == 4
    assert set(poster.refused.values()) == {reason}
    assert f"not posted: {poster.waiting()[0].path}: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize("server", ["file:///etc", "127.0.0.1:8321", "http://", ""])
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(InvalidRequest, match="--server"):
        Target(server, "mine")
