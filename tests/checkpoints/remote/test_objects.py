"""hf:// over the hub's own protocol, spoken by a server of the tests' own."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote import objects
from evalsvc.checkpoints.remote.fetch import fetched, identify_remote
from evalsvc.config import Settings
from evalsvc.errors import CheckpointChanged, CheckpointNotFound

COMMIT = "c" * 40


class ModelHub(BaseHTTPRequestHandler):
    """One repository, `owner/repo`, with the branch `main` and the tag `v1`."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self._file(path.split("/resolve/")[1].partition("/")[2])
        elif "/tree/" in path:
            self._json(self._tree(path.split("/tree/")[1].partition("/")[2]))
        elif path.startswith("/api/models/owner/repo"):
            self._json({"id": "owner/repo", "sha": COMMIT, "tags": [], "siblings": [], "private": False})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        inside = [self._info(name) for name in self.files if name.rpartition("/")[0] == folder]
        folders = {name.partition("/")[0] for name in self.files if not folder}
        return inside + [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]

    def _info(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs}

    def _file(self, name: str) -> None:
        content, status = self.files.get(name, b""), 200
        total = len(content)
        if (found := self.headers.get("Range")) and content:
            begin, _, end = found.removeprefix("bytes=").partition("-")
            content, status = content[int(begin) : int(end) + 1 if end else None], 206
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        headers["Content-Range"] = f"bytes 0-{total - 1}/{total}"
        self._answer(status if name in self.files else 404, content, headers)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    files = {"run/epoch_1.pt": b"weights" * 1000, "hf/model.safetensors": b"weights", "hf/config.json": b"{}"}
    handler = type("Hub", (ModelHub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    options = {**objects.OPTIONS["hf"], "endpoint": f"http://127.0.0.1:{server.server_address[1]}", "token": False}
    monkeypatch.setitem(objects.OPTIONS, "hf", options)
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path), schemes="hf")


def test_a_file_of_a_revision(hub: dict[str, bytes], settings: Settings) -> None:
    uri = "hf://owner/repo/run/epoch_1.pt@v1"
    identity = identify_remote(uri, settings)
    assert identity.size == 7000
    assert identity.etag == hashlib.sha256(hub["run/epoch_1.pt"]).hexdigest(), "the hub knows the digest itself"
    with fetched([CheckpointRef(uri, identity)], settings, lambda _: None) as (here,):
        assert Path(here.path).read_bytes() == hub["run/epoch_1.pt"]
        assert Path(here.path).name == "epoch_1.pt"


def test_a_folder(hub: dict[str, bytes], settings: Settings) -> None:
    uri = "hf://owner/repo/hf"
    with fetched([CheckpointRef(uri, identify_remote(uri, settings))], settings, lambda _: None) as (here,):
        assert {path.name: path.read_bytes() for path in Path(here.path).iterdir()} == {
            "model.safetensors": b"weights",
            "config.json": b"{}",
        }


def test_a_branch_that_has_moved_on(hub: dict[str, bytes], settings: Settings) -> None:
    uri = "hf://owner/repo/run/epoch_1.pt"
    posted = CheckpointRef(uri, identify_remote(uri, settings))
    hub["run/epoch_1.pt"] = b"another" * 1000
    with pytest.raises(CheckpointChanged, match="was posted with"), fetched([posted], settings, lambda _: None):
        pass


@pytest.mark.parametrize("uri", ["hf://owner/repo/none.pt", "hf://owner/other/x.pt"])
def test_nothing_there(hub: dict[str, bytes], settings: Settings, uri: str) -> None:
    with pytest.raises(CheckpointNotFound, match="nothing is there"):
        identify_remote(uri, settings)
