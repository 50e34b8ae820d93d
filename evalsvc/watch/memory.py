"""Memory of a watcher between its starts: digests of files, and the steps of epochs whose files were removed.

The service knows the posted checkpoints, so a lost memory costs only time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from evalsvc.files.atomic import write_whole
from evalsvc.watch.folders import Candidate


class _Content(BaseModel):
    format: Literal[1] = 1
    digests: dict[str, tuple[str, str]] = {}
    """Mark and SHA-256 by URI."""
    steps: dict[int, int] = {}
    """Step by epoch."""


class Memory:
    """Memory in a file, which is replaced atomically. A missing, damaged or incompatible file counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._content = _Content.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            self._content = _Content()

    @classmethod
    def of(cls, data_home: Path, place: str, run: str) -> Memory:
        """Return the memory for the watcher of a folder and a run."""
        name = hashlib.sha256(f"{place}\n{run}".encode()).hexdigest()[:16]
        return cls(data_home / "watch" / f"{name}.json")

    def digest(self, candidate: Candidate) -> str | None:
        """Return the known SHA-256 of a candidate; None if the content was never digested or has changed."""
        mark, sha256 = self._content.digests.get(candidate.uri, ("", ""))
        return sha256 if mark == candidate.mark else None

    def keep_digest(self, candidate: Candidate, sha256: str) -> None:
        self._content.digests[candidate.uri] = (candidate.mark, sha256)
        self._write()

    def step(self, epoch: int) -> int | None:
        return self._content.steps.get(epoch)

    def keep_step(self, epoch: int, step: int) -> None:
        if self.step(epoch) != step:
            self._content.steps[epoch] = step
            self._write()

    def forget_others(self, uris: Collection[str]) -> None:
        """Remove the digests of all URIs except `uris`."""
        digests = self._content.digests
        self._content.digests = {uri: kept for uri, kept in digests.items() if uri in uris}

    def _write(self) -> None:
        write_whole(self._path, self._content.model_dump_json().encode())
