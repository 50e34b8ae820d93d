"""Local folder that is watched, and its files and folders that may be checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalsvc.checkpoints.reference import MAX_FILES, files_of, identify
from evalsvc.errors import CheckpointError

FILE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

INSIDE = "checkpoints"
"""Folder of checkpoints in the folder of an open_lm run."""


@dataclass(frozen=True)
class Candidate:
    """File or folder that may be a checkpoint."""

    name: str
    uri: str
    """Absolute path, or address in a store, as posted to the service."""
    mark: str
    """Fingerprint of the content by names, sizes and times: a changed mark means changed content."""
    size: int
    """Size in bytes; for a folder, the size of all its files."""
    modified: float | None
    """Time of the last change, in seconds since 1970; None in a store."""
    path: Path | None
    """Local path; None in a store."""
    is_folder: bool
    problem: str | None = None
    """Reason why the candidate is not complete; None if no reason is known."""


class LocalFolder:
    """Folder of this machine, and its folder `checkpoints`. The folder need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        return self.folder.is_dir()

    def list(self) -> Sequence[Candidate]:
        """Return the candidates in no order, without files that are removed meanwhile."""
        return [candidate for folder in (self.folder, self.folder / INSIDE) for candidate in _inside(folder)]


def look_at(path: Path) -> Candidate | None:
    """Return the file or folder at a path as it is now; None if the path is neither or was removed."""
    try:
        is_folder = path.is_dir()
        if is_folder:
            files_of(path, MAX_FILES)
        identity, status = identify(path), path.stat()
    except (OSError, CheckpointError):
        return None
    mark = f"{identity.size} {identity.mtime_ns} {status.st_ino}"
    modified = identity.mtime_ns / 1e9
    return Candidate(path.name, str(path), mark, identity.size, modified, path, is_folder)


def _inside(folder: Path) -> Iterator[Candidate]:
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if _may_be_checkpoint(entry)]
    except OSError:
        return
    for path in paths:
        if (candidate := look_at(path)) is not None:
            yield candidate


def _may_be_checkpoint(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    return entry.name.endswith(FILE_ENDINGS) or (entry.is_dir() and entry.name != INSIDE)
