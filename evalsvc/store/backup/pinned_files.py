"""Hard links to the files that a backup reads, so that the service may delete the files meanwhile.

Copying a large data folder takes minutes to hours. In this time the service prunes artifacts, deletes runs and merges
outputs. A hard link needs neither time nor space, and the service never writes into an existing file, so a linked file
does not change. On a file system without hard links, the files are copied.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evalsvc.errors import DataDirectoryUnusable
from evalsvc.store.backup.named import NamedFile
from evalsvc.store.data_folder import unwritable

FOLDER = "backup"
"""The folder of links in the data folder, which exists during a backup."""

_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)


class PinnedFiles:
    """The links of a backup, from `pinned_files`."""

    def __init__(self, data_folder: Path, folder: Path) -> None:
        self._data_folder = data_folder
        self._folder = folder

    def pin(self, files: Iterable[NamedFile]) -> set[str]:
        """Link these files in place of all earlier links. Return the names of the files that do not exist.

        Raises:
            OSError: a link cannot be made.
        """
        _empty(self._folder)
        missing = set()
        for file in files:
            try:
                _link(self._data_folder / file.place, self._folder / file.place)
            except (FileNotFoundError, NotADirectoryError):
                missing.add(file.name)
        return missing

    def of(self, section: str) -> Iterator[tuple[str, Path]]:
        """Yield the path within the section's folder and the path of the link for each linked file, sorted by path."""
        for path in _files_below(self._folder / section):
            yield str(path.relative_to(self._folder / section)), path


@contextmanager
def pinned_files(data_folder: Path) -> Iterator[PinnedFiles]:
    """Create the folder of links, and remove the folder at the end. The folder of a killed backup is reused.

    Raises:
        DataDirectoryUnusable: the data folder cannot be written, or another backup of the data folder is running.
    """
    folder = data_folder / FOLDER
    try:
        lock = _lock(folder)
    except OSError as error:
        raise unwritable(str(folder), error) from None
    try:
        yield PinnedFiles(data_folder, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int:
    """Create the folder if necessary, and lock it. The lock ends with the process, even with a killed process."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise DataDirectoryUnusable(
                f"another backup of the data folder is running, which has locked {folder}; wait until that backup ends"
            ) from None
        try:
            if os.path.samestat(os.fstat(lock), os.stat(folder)):
                return lock
        except FileNotFoundError:
            pass  # the previous backup removed the folder before this one locked it
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def _link(source: Path, target: Path) -> None:
    """Link a file, or all files of a folder, to a new path."""
    if source.is_dir():
        for path in list(_files_below(source)):
            _link(path, target / path.relative_to(source))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, sorted by the parts of their paths."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))
        else:
            yield Path(entry.path)
