"""Copies of checkpoints in folders of this machine: each is complete under its name, or is not there.

A copy is a folder that is filled under another name, so nothing that ends the process leaves half a copy, and what was
begun is gone on with. Two stores consist of such copies:

- The spool in the data folder keeps posted checkpoints. These are pinned: each stays until the service removes it.
- The cache keeps fetched checkpoints within a bound, for all worker processes of a machine. A process that uses a copy
  holds a shared lock on the file next to it, one that fills or removes the copy an exclusive lock; the kernel releases
  locks when a process dies. A lock file says how large its copy is or will be, its modification time when the copy was
  last used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import CacheFull, CheckpointError, DataDirectoryUnusable, InvalidRequest, os_reason

POLL = 0.2
"""Seconds between two looks at a copy that another process is filling."""

Fill = Callable[[Path], None]
"""Puts the files of a checkpoint into a folder that may have a part of them."""


class NoRoom(Exception):
    """All that could make room is in use just now."""


@dataclass(frozen=True)
class Copy:
    """A place for a copy."""

    folder: Path
    size: int = 0
    """Bytes, where the copies of a store are bounded."""

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    def fill(self, fill: Fill) -> None:
        """Go on with the copy where it was left, and have it there when it is complete."""
        self.partial.mkdir(parents=True, exist_ok=True)
        fill(self.partial)
        self.partial.rename(self.folder)

    def remove(self) -> None:
        """Delete what is there, if anything."""
        for folder in (self.folder, self.partial):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(FileNotFoundError, NotADirectoryError):
            self.lock.unlink()


# the spool

releasing = threading.Lock()
"""Held from the moment at which the database says that a copy is released until the copy is removed, and by a request
that puts a file in the place of a released copy."""


def spooled(data_path: Path, checkpoint_id: int) -> Copy:
    """Return the place of a posted checkpoint's copy."""
    return Copy(data_path / "spool" / str(checkpoint_id))


def spool_path(data_path: Path, checkpoint_id: int, path: str) -> Path:
    """Return the path of a spooled checkpoint; it keeps its name, which messages show."""
    return spooled(data_path, checkpoint_id).folder / Path(path).name


def link_into(copy: Copy, source: Path) -> None:
    """Keep a checkpoint alive by hard links: instant, and without cost of space while the original exists.

    Raises:
        InvalidRequest: the copy would lie on another file system.
    """
    copy.remove()  # a post that was rolled back may have left its copy under an id that is given again
    try:
        copy.fill(lambda folder: _put(source, folder / source.name, os.link))
    except (OSError, shutil.Error) as error:
        copy.remove()
        raise InvalidRequest(
            f"spool=link cannot link {source} to {copy.folder / source.name} ({os_reason(error)}); "
            "links work on one file system only: use spool=copy, or move EVALSVC_DATA_DIR"
        ) from None


def keep_upload(copy: Copy, source: Path, name: str) -> None:
    """Keep an uploaded file under a name, by a hard link; the caller deletes the upload once the post is stored.

    Raises:
        DataDirectoryUnusable: the file cannot be linked.
    """
    copy.remove()  # see `link_into`
    try:
        copy.fill(lambda folder: os.link(source, folder / name, follow_symlinks=False))
    except OSError as error:
        copy.remove()
        raise DataDirectoryUnusable(
            f"the uploaded file {source} cannot be linked to {copy.folder} ({os_reason(error)}); the folders `uploads` "
            "and `spool` of the data folder must be on one file system that has hard links"
        ) from None


def copy_files(source: Path, target: Path) -> None:
    """Copy a file or folder with its modification times; what an earlier copy left of `target` is replaced."""
    shutil.rmtree(target, ignore_errors=True)
    _put(source, target, shutil.copy2)


def _put(source: Path, target: Path, put: Callable[[str, str], object]) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=put)
    else:
        put(str(source), str(target))


# the cache


class Cache:
    """At most `limit` bytes of copies in `folder`; those that were used least recently make room."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def copy(self, uri: str, identity: Identity) -> Copy:
        """Return the place for what was posted: its name follows from address, size and etag."""
        name = hashlib.sha256(f"{uri}\n{identity.size}\n{identity.etag}".encode()).hexdigest()[:40]
        return Copy(self._folder / name, identity.size)

    @contextmanager
    def held(self, copy: Copy, fill: Fill, report: Callable[[], None]) -> Iterator[Path]:
        """Give the folder of a copy, which stays there meanwhile.

        Of several processes one fills it, and the others wait. `report` is called meanwhile and may raise.

        Raises:
            CacheFull: the cache's folder cannot be made.
            NoRoom: the copy would not fit next to what is in use.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheFull(f"{self._folder} cannot be made ({os_reason(error)}); move EVALSVC_CACHE") from None
        lock = self._shared(copy, fill, report)
        try:
            os.utime(copy.lock)
            yield copy.folder
        finally:
            os.close(lock)

    def drop(self, copy: Copy) -> bool:
        """Remove a copy, unless another process uses it; return whether it is gone."""
        if (lock := _lock(copy.lock, fcntl.LOCK_EX)) is not None:
            copy.remove()
            os.close(lock)
        return lock is not None

    def _shared(self, copy: Copy, fill: Fill, report: Callable[[], None]) -> int:
        """Return a shared lock on a complete copy."""
        while True:
            lock = _lock(copy.lock, fcntl.LOCK_SH)
            if lock is not None and copy.folder.is_dir():
                return lock
            if lock is not None:
                os.close(lock)
            lock = _lock(copy.lock, fcntl.LOCK_EX)
            if lock is not None:
                try:
                    if not copy.folder.is_dir():
                        self._fill(copy, lock, fill)
                finally:
                    os.close(lock)
                continue
            report()
            # Two that wait for each other's shared lock would do so in step for ever.
            time.sleep(POLL * (0.5 + random.random()))

    def _fill(self, copy: Copy, lock: int, fill: Fill) -> None:
        with (self._folder / "lock").open("w") as accounts:
            fcntl.flock(accounts, fcntl.LOCK_EX)  # one process at a time decides what goes and what comes
            self._make_room(copy)
            os.truncate(lock, 0)
            os.pwrite(lock, json.dumps({"size": copy.size}).encode(), 0)
        try:
            copy.fill(fill)
        except CheckpointError:
            copy.remove()  # what was begun is not what was posted: nothing to go on with
            raise

    def _make_room(self, wanted: Copy) -> None:
        others = sorted(self._others(wanted), key=lambda found: found[0])
        total = wanted.size + sum(copy.size for _, copy in others)
        for _, copy in others:
            if total > self._limit and self.drop(copy):
                total -= copy.size
        if total > self._limit:
            raise NoRoom

    def _others(self, wanted: Copy) -> Iterator[tuple[int, Copy]]:
        """Yield when each other copy was used last, with the copy."""
        for lock in self._folder.glob("*.lock"):
            copy = Copy(lock.with_suffix(""))
            if copy.folder == wanted.folder:
                continue
            with suppress(OSError, ValueError, KeyError, TypeError):
                size = int(json.loads(lock.read_bytes() or b'{"size": 0}')["size"])
                yield lock.stat().st_mtime_ns, replace(copy, size=size)


def _lock(path: Path, kind: int) -> int | None:
    """Lock the file that is at `path`, without waiting; None where another process is in the way."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)  # it was removed between opening and locking
