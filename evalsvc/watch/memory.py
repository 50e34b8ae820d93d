"""What a watcher keeps between its starts: digests that cost time, and the steps of epochs whose files are gone.

What was posted is not in it: that the service knows. So losing it loses nothing but time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from evalsvc.files.atomic import write_whole
from evalsvc.watch.local_folder import Candidate

FORMAT = 1


class Memory:
    """One file, written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = _read(path)
        self._digests: dict[str, list[str]] = content.get("digests", {})
        self._steps: dict[str, int] = content.get("steps", {})

    @classmethod
    def of(cls, data_home: Path, place: str, run: str) -> Memory:
        """That of a watcher of a place for a run."""
        name = hashlib.sha256(f"{place}\n{run}".encode()).hexdigest()[:16]
        return cls(data_home / "watch" / f"{name}.json")

    def digest(self, candidate: Candidate) -> str | None:
        """The SHA-256 of a content that was digested before; None: it was not, or has changed."""
        mark, sha256 = self._digests.get(candidate.uri, ("", ""))
        return sha256 if mark == candidate.mark else None

    def keep_digest(self, candidate: Candidate, sha256: str) -> None:
        self._digests[candidate.uri] = [candidate.mark, sha256]
        self._write()

    def step(self, epoch: int) -> int | None:
        return self._steps.get(str(epoch))

    def keep_step(self, epoch: int, step: int) -> None:
        if self._steps.get(str(epoch)) != step:
            self._steps[str(epoch)] = step
            self._write()

    def forget_others(self, uris: Collection[str]) -> None:
        """Drop the digests of what is not there any more."""
        self._digests = {uri: kept for uri, kept in self._digests.items() if uri in uris}

    def _write(self) -> None:
        content = {"format": FORMAT, "digests": self._digests, "steps": self._steps}
        write_whole(self._path, json.dumps(content).encode())


def _read(path: Path) -> dict[str, Any]:
    """What is there; a file that is missing, damaged or of another version is begun anew."""
    try:
        content = json.loads(path.read_bytes())
        digests = {str(uri): [str(mark), str(digest)] for uri, (mark, digest) in content["digests"].items()}
        steps = {str(epoch): int(step) for epoch, step in content["steps"].items()}
        return {"digests": digests, "steps": steps} if content["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
