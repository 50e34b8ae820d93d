"""README is held to the code: what it must name. Its blocks and links are held by docs/test_blocks.py."""

import ast
import inspect
import itertools
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from app_in_process import app_on_port
from doc_blocks import DOCS, README, ROOT, find_block, read_blocks
from doc_commands import commands
from http_pages import server

from evalsvc.spec import catalog
from evalsvc.spec.suite import suite_files

Post = Callable[..., object]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def test_every_task_is_named_and_every_suite_where_suites_are_written() -> None:
    assert [kind for kind in catalog.COMPONENTS["tasks"] if f"`{kind}`" not in README.read_text()] == []
    page = (DOCS / "how-to" / "write-a-suite.md").read_text()
    assert [name for name in suite_files(None) if f"`{name}`" not in page] == []


def test_every_file_of_the_package_is_in_the_tree() -> None:
    tree = find_block(README, "text", "catalog")
    names = {path.name for path in (ROOT / "evalsvc").glob("*.py")} - {"__init__.py"}
    names |= {path.name + "/" for path in (ROOT / "evalsvc").iterdir() if path.is_dir() and path.name[0] != "_"}
    missing = [name for name in sorted(names) if not re.search(rf"(^|\s){re.escape(name)}", tree)]
    assert missing == []


@pytest.fixture
def post() -> Post:
    """The function that a trainer copies. It has nothing but the standard library."""
    [block] = [block for block in read_blocks(README) if "def post_checkpoint" in block.text]
    imports = [node.names[0].name for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Import)]
    assert {name.partition(".")[0] for name in imports} <= sys.stdlib_module_names
    ast.parse(block.text, feature_version=(3, 8))
    assert len(block.text.splitlines()) <= 30
    names: dict[str, Post] = {}
    exec(block.text, names)
    return names["post_checkpoint"]


def test_a_trainer_reads_why_it_was_refused(post: Post, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    """It printed `HTTP Error 422: Unprocessable Entity`, and threw the answer with the cure away."""
    with app_on_port(tmp_path / "data") as (url, _):
        assert post("run-a", 5, weights, suites=["loss"], service=url)
        assert capsys.readouterr().out == ""
        for step, fields, words in (
            (6, {"suites": ["los"]}, "no suite is named 'los'; did you mean 'loss'?"),
            (-1, {}, "step: "),
            (5, {"layout": {"text": {"size": 80}}}, "run 'run-a' has a checkpoint at step 5"),
            (7, {"nonsense": 1}, "no field is named 'nonsense'"),
        ):
            assert post("run-a", step, weights, service=url, **fields) is None
            said = capsys.readouterr().out
            assert re.match(rf"checkpoint run-a@{step}: ['\"]{re.escape(words)}", said)
            assert len(said.splitlines()) == 1
            assert '"detail"' not in said


JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(connection: socket.socket) -> None:
    """Send a byte of an answer, now and then, until the client leaves; no wait for a byte is ever long."""
    for byte in itertools.chain(b"HTTP/1.1 200 OK\r\n", itertools.repeat(120)):
        connection.sendall(bytes([byte]))
        threading.Event().wait(0.02)


def flood(connection: socket.socket) -> None:
    connection.sendall(JSON + b"\r\n")
    while True:
        connection.sendall(b" " * 65_536)


def redirect(connection: socket.socket) -> None:
    host, port = connection.getsockname()
    connection.sendall(f"HTTP/1.1 303 x\r\nLocation: http://{host}:{port}/\r\nContent-Length: 0\r\n\r\n".encode())


def wait(connection: socket.socket, begun: bytes = b"") -> None:
    connection.sendall(begun)
    while connection.recv(65_536):
        pass


MISBEHAVING: dict[str, bytes | Callable[[socket.socket], None]] = {
    "killed while it answers": JSON + b"Content-Length: 900\r\n\r\n{",
    "login page": JSON + b"Content-Length: 7\r\n\r\n<html/>",
    "another object": JSON + b'Content-Length: 16\r\n\r\n{"detail": null}',
    "another service": JSON + b"Content-Length: 2\r\n\r\n[]",
    "nested without end": JSON + b"\r\n" + b"[" * 1_000_000,
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "hangs": wait,
    "hangs in the body": lambda connection: wait(connection, JSON + b"Content-Length: 9\r\n\r\n{"),
    "drips": drip,
    "floods": flood,
    "binary error": b"HTTP/1.1 500 x\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00\x1b",
    "unprintable reason": b'HTTP/1.1 422 x\r\nContent-Length: 34\r\n\r\n{"detail": "\\ud800\\u001b[2J\\n a b"}',
    "redirects for ever": redirect,
    "closes at once": b"",
    "huge headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "one huge header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000,
}


@contextmanager
def misbehaving(answer: bytes | Callable[[socket.socket], None], requests: list[bytes]) -> Iterator[str]:
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the test is over
                return
            connections.append(connection)
            with connection, suppress(OSError):
                requests.append(connection.recv(65_536))
                connection.sendall(answer) if isinstance(answer, bytes) else answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=serve, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            for end in (listener, *connections):
                with suppress(OSError):  # closed before
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_no_service_holds_up_a_training(post: Post, weights: Path, capsys: Capture, monkeypatch: Patch) -> None:
    """IncompleteRead, JSONDecodeError and BadStatusLine ended trainings; a byte a second held one up for ever."""
    monkeypatch.setenv("EVALSVC_TOKEN", "secret")
    requests: list[bytes] = []
    with ExitStack() as stack, ThreadPoolExecutor(len(MISBEHAVING)) as pool:
        urls = [stack.enter_context(misbehaving(answer, requests)) for answer in MISBEHAVING.values()]
        began = time.monotonic()
        posts = [pool.submit(post, "run-a", 5, weights, service=url, timeout=0.5) for url in urls]
        assert [post.result() for post in posts] == [None] * len(MISBEHAVING)
        assert time.monotonic() - began < 5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MISBEHAVING), "one line for each, whatever the answer holds"
    assert all(line.isprintable() and line.startswith("checkpoint run-a@5: ") for line in lines)
    assert all(len(line) <= 1000 for line in lines)
    assert not any(b"secret" in request for request in requests if request.startswith(b"GET")), "a redirect got it"
    assert inspect.signature(post).parameters["timeout"].default == 5
    assert "5 s" in (post.__doc__ or "")


def test_a_mistake_of_the_trainer_stops_no_training(post: Post, weights: Path, capsys: Capture) -> None:
    with server(None) as port:  # an HTTP server that is no evalsvc, and without TLS
        urls = [f"{scheme}://127.0.0.1:{port}" for scheme in ("http", "https")]
        urls += ["http://no-such-host.invalid", "http://127.0.0.1:1/a b", "127.0.0.1:8321", None]
        wrong = [{"tags": {"lr": object()}}, *({"service": url} for url in urls)]
        for step, fields in ((float("nan"), {}), ("five", {}), (None, {}), *((5, each) for each in wrong)):
            assert post("run-a", step, weights, **{"service": "http://127.0.0.1:1", **fields}) is None
            [line] = capsys.readouterr().out.splitlines()
            assert line.startswith(f"checkpoint run-a@{step}: ")


@pytest.mark.parametrize("token", ["secret\nof two lines", "secret\r\nX: y", "secret €"])
def test_no_wrong_token_is_printed(post: Post, weights: Path, capsys: Capture, monkeypatch: Patch, token: str) -> None:
    """The messages of Python's errors quote the header, and a training's log is read by many."""
    monkeypatch.setenv("EVALSVC_TOKEN", token)
    with misbehaving(b"HTTP/1.1 401 x\r\n\r\n", requests := []) as url:
        assert post("run-a", 5, weights, service=url, timeout=2) is None
    assert "secret" not in capsys.readouterr().out
    assert len(requests) == 1


def test_a_trainer_uses_numpy(post: Post, weights: Path, tmp_path: Path, capsys: Capture, monkeypatch: Patch) -> None:
    """The line break behind the token, the type of the step and a slash behind the address were errors."""
    monkeypatch.setenv("EVALSVC_TOKEN", "secret\n")
    with app_on_port(tmp_path / "data") as (url, _):
        posted = post("run-a", np.int64(5), weights, service=url + "/", tokens_seen=np.int64(6))
    assert posted["checkpoint"]["step"] == 5  # type: ignore[index]
    assert posted["checkpoint"]["tokens_seen"] == 6  # type: ignore[index]
    assert "nothing is evaluated" in capsys.readouterr().out


def test_the_first_metric_takes_few_commands_and_words() -> None:
    """What a stranger reads and types from the first line of README to a metric of a file of theirs, and to a curve."""
    before = README.read_text().partition("\nFor a curve,")[0]
    metric, curve = [list(commands(find_block(README, "sh", text))) for text in ("suites new", "evalsvc watch")]
    assert len(metric) <= 5
    assert len(metric) + len(curve) <= 8
    assert {words[0] for words in metric + curve} == {"pip", "evalsvc"}
    assert len(before.split()) <= 600
