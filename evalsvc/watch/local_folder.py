"""What lies in the folder that is watched: files and folders that may be checkpoints, as they look now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalsvc.checkpoints.reference import MAX_FILES, files_of, identify
from evalsvc.errors import CheckpointError

FILE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

INSIDE = "checkpoints"
"""Where open_lm puts them below a run's folder."""


@dataclass(frozen=True)
class Candidate:
    """A file or folder."""

    name: str
    uri: str
    """As it is posted: an absolute path, or an address."""
    mark: str
    """Another one where the content is another, as far as names, sizes and times tell."""
    size: int
    """Bytes; of a folder, of all its files."""
    modified: float | None
    """When it was last written to, in seconds since 1970; None where its place does not say."""
    path: Path | None
    """None: it lies in a store."""
    is_folder: bool
    problem: str | None = None
    """Why it is not complete, where its place can tell."""


class LocalFolder:
    """A folder of this machine, and `checkpoints` in it. It may not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        return self.folder.is_dir()

    def list(self) -> Sequence[Candidate]:
        """What is there, in no order. What goes away meanwhile is left out."""
        return [candidate for folder in (self.folder, self.folder / INSIDE) for candidate in _inside(folder)]


def look_at(path: Path) -> Candidate | None:
    """A file or folder as it is now; None where it is none, or is gone."""
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
            paths = [Path(entry.path) for entry in entries if _may_be_one(entry)]
    except OSError:
        return
    for path in paths:
        if (candidate := look_at(path)) is not None:
            yield candidate


def _may_be_one(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    return entry.name.endswith(FILE_ENDINGS) or (entry.is_dir() and entry.name != INSIDE)
