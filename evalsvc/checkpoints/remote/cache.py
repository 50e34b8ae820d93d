"""Copies of fetched checkpoints within a size limit, for all worker processes of a machine.

A process that uses a copy holds a shared lock on the file next to it, one that fills or removes the copy an exclusive
lock; the kernel releases locks when a process dies, and the next process resumes the copy. A lock file says how large
its copy is or will be, its modification time when the copy was last used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evalsvc.checkpoints.copies import Copy, Fill
from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import CacheFull, CheckpointError, os_reason

POLL = 0.2
"""Seconds between two checks of a copy that another process is filling."""


class NoRoom(Exception):
    """Everything that could be removed to make room is in use."""


class Cache:
    """At most `limit` bytes of copies in `folder`. The least recently used copies are removed to make room."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def copy(self, uri: str, identity: Identity) -> Copy:
        """Return the location of a posted checkpoint, whose name is derived from address, size and etag."""
        name = hashlib.sha256(f"{uri}\n{identity.size}\n{identity.etag}".encode()).hexdigest()[:40]
        return Copy(self._folder / name, identity.size)

    @contextmanager
    def held(self, copy: Copy, fill: Fill, report: Callable[[], None]) -> Iterator[Path]:
        """Yield the folder of a copy, which stays there until the context ends.

        One of several processes fills the copy while the others wait. `report` is called in the meantime and may raise.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheFull(
                f"{self._folder} cannot be created ({os_reason(error)}); set EVALSVC_CACHE to another folder"
            ) from None
        lock = self._shared(copy, fill, report)
        try:
            now = time.time_ns()  # the kernel's own time of a change is only exact to a few milliseconds
            os.utime(copy.lock, ns=(now, now))
            yield copy.folder
        finally:
            os.close(lock)

    def drop(self, copy: Copy) -> bool:
        """Remove a copy unless another process uses it; return whether it was removed."""
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
            # Sleep for a random time, so that two processes do not retry in step forever.
            time.sleep(POLL * (0.5 + random.random()))

    def _fill(self, copy: Copy, lock: int, fill: Fill) -> None:
        with (self._folder / "lock").open("w") as accounts:
            fcntl.flock(accounts, fcntl.LOCK_EX)  # only one process at a time decides which copies to remove and add
            self._make_room(copy)
            os.truncate(lock, 0)
            os.pwrite(lock, json.dumps({"size": copy.size}).encode(), 0)
        try:
            copy.fill(fill)
        except CheckpointError:
            copy.remove()  # the partial copy is of another checkpoint, so do not resume it
            raise

    def _make_room(self, wanted: Copy) -> None:
        others: list[tuple[int, Copy]] = []  # with the time of their last use
        for lock in self._folder.glob("*.lock"):
            if lock == wanted.lock:
                continue
            with suppress(OSError, ValueError, KeyError, TypeError):
                size = int(json.loads(lock.read_bytes() or b'{"size": 0}')["size"])
                others.append((lock.stat().st_mtime_ns, Copy(lock.with_suffix(""), size)))
        others.sort(key=lambda entry: entry[0])
        total = wanted.size + sum(copy.size for _, copy in others)
        for _, copy in others:
            if total > self._limit and self.drop(copy):
                total -= copy.size
        if total > self._limit:
            raise NoRoom


def _lock(path: Path, kind: int) -> int | None:
    """Lock the file at `path` without waiting; return None if another process holds a conflicting lock."""
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
        os.close(file)  # the file was removed between opening and locking
