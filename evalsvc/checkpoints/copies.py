"""The spool: copies of posted checkpoints in the data folder. A copy under its final name is complete.

A copy is filled under a temporary name and renamed when it is complete, so a process that ends early leaves no half
copy. Each copy stays until the service removes it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evalsvc.errors import DataDirectoryUnusable, InvalidRequest, os_reason

Fill = Callable[[Path], None]
"""Function that puts the files of a checkpoint into a folder, which may already hold some of them."""


@dataclass(frozen=True)
class Copy:
    """A location for a copy."""

    folder: Path
    size: int = 0
    """Size of the copy in bytes, in a store with a size limit."""

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    def fill(self, fill: Fill) -> None:
        """Resume or begin the copy, and rename it to its final name when it is complete."""
        self.partial.mkdir(parents=True, exist_ok=True)
        fill(self.partial)
        self.partial.rename(self.folder)

    def remove(self) -> None:
        """Delete the copy and its partial files, if they exist. A backup never reads a part of the copy."""
        shutil.rmtree(self.partial, ignore_errors=True)
        with suppress(OSError):
            self.folder.rename(self.partial)
        for folder in (self.folder, self.partial):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(FileNotFoundError, NotADirectoryError):
            self.lock.unlink()


releasing = threading.Lock()
"""Held from the moment at which the database says that a copy is released until the copy is removed, and by a request
that puts a file in the place of a released copy."""


def spooled(data_path: Path, checkpoint_id: int) -> Copy:
    """Return the location of a posted checkpoint's copy."""
    return Copy(data_path / "spool" / str(checkpoint_id))


def spool_path(data_path: Path, checkpoint_id: int, path: str) -> Path:
    """Return the path of a spooled checkpoint, which keeps its file name for messages."""
    return spooled(data_path, checkpoint_id).folder / Path(path).name


def link_into(copy: Copy, source: Path, name: str) -> None:
    """Keep a checkpoint alive under a name by hard links: immediately, and without disk space while it exists itself.

    Links in `source` are followed, and so the names of `opening.opened` lead to the files that were checked.
    """
    if (reason := _problem(copy, lambda folder: _put(source, folder / name, _link))) is not None:
        raise InvalidRequest(
            f"spool=link cannot link {source} to {copy.folder / name} ({reason}); links work on one file system only: "
            "use spool=copy, or move EVALSVC_DATA_DIR"
        )


def keep_upload(copy: Copy, source: Path, name: str) -> None:
    """Keep an uploaded file under a name, by a hard link; the caller deletes the upload once the post is stored."""
    if (reason := _problem(copy, lambda folder: os.link(source, folder / name, follow_symlinks=False))) is not None:
        raise DataDirectoryUnusable(
            f"the uploaded file {source} cannot be linked to {copy.folder} ({reason}); the folders `uploads` and "
            "`spool` of the data folder must be on one file system that has hard links"
        )


def _problem(copy: Copy, fill: Fill) -> str | None:
    copy.remove()  # a rolled-back post may have left a copy under an id that is assigned again
    try:
        copy.fill(fill)
    except (OSError, shutil.Error) as error:
        copy.remove()
        return os_reason(error)
    return None


def copy_files(source: Path, target: Path) -> None:
    """Copy a file or folder with its modification times, and replace what an earlier copy left of `target`."""
    shutil.rmtree(target, ignore_errors=True)
    _put(source, target, shutil.copy2)


def _link(source: str, target: str) -> None:
    folder, name = os.path.split(target)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(source, name, dst_dir_fd=descriptor)  # without a descriptor, links would not be followed
    finally:
        os.close(descriptor)


def _put(source: Path, target: Path, put: Callable[[str, str], object]) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=put)
    else:
        put(str(source), str(target))
