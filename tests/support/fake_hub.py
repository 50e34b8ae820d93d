"""A Hugging Face hub of one dataset without folders, `someone/questions`; the packages talk to it by HF_ENDPOINT."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

COMMIT = "a" * 40


class FakeHub(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self._file(path.split("/resolve/")[1].partition("/")[2])
        elif "/tree/" in path:
            self._json(self._tree(path.split("/tree/")[1].partition("/")[2]))
        elif path.startswith("/api/datasets/"):
            self._json({"id": "someone/questions", "sha": COMMIT, "tags": [], "siblings": []})
        else:
            self._answer(404, b"", {})

    do_HEAD = do_GET  # noqa: N815

    def _file(self, name: str) -> None:
        if name not in self.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = self.files[name]
        self._answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        inside = [(name, content) for name, content in self.files.items() if name.rpartition("/")[0] == folder]
        return [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in inside]

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


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the paths that it was asked for so far."""
    handler = type("Hub", (FakeHub,), {"files": {"README.md": b"---\nlicense: mit\n---\n", **files}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
