"""A Hugging Face hub of one repository, by its own protocol; the packages talk to it by its address."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from http_pages import Pages, serving

COMMIT = "c" * 40


class FakeHub(Pages):
    repository: str
    """Such as `datasets/someone/questions`, as the hub's paths name it."""
    files: dict[str, bytes]
    asked: list[str]

    def respond(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self._file(path.split("/resolve/")[1].partition("/")[2])
        elif "/tree/" in path:
            self._json(self._tree(path.split("/tree/")[1].partition("/")[2]))
        elif path.startswith(f"/api/{self.repository}"):
            name = self.repository.partition("/")[2]
            self._json({"id": name, "sha": COMMIT, "tags": [], "siblings": [], "private": False})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        if name not in self.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, status = self.files[name], 200
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if found := self.headers.get("Range"):
            begin, _, end = found.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {begin}-{end or len(content) - 1}/{len(content)}"
            content, status = content[int(begin) : int(end) + 1 if end else None], 206
        self.answer(status, content, headers)

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        inside = [self._info(name) for name in self.files if name.rpartition("/")[0] == folder]
        folders = {name.partition("/")[0] for name in self.files if "/" in name and not folder}
        return inside + [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]

    def _info(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs}

    def _json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


@contextmanager
def fake_hub(repository: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the paths that it was asked for so far."""
    asked: list[str] = []
    with serving(type("Hub", (FakeHub,), {"repository": repository, "files": files, "asked": asked})) as port:
        yield f"http://127.0.0.1:{port}", asked
