"""A folder of bounded size with checkpoints from elsewhere, shared by the worker processes of a machine.

An entry is a folder named by what was posted (address, size, etag), complete under that name or not there. Whoever uses
it holds a shared lock on the file beside it, whoever fetches or removes it an exclusive one; the kernel lets go of both
when a process dies. A lock file says how large its entry is or will be, its modification time when it was last used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import CacheFull, CheckpointError, os_reason

POLL = 0.2
"""Seconds between two looks at an entry that another process is fetching."""


class NoRoom(Exception):
    """All that could make room is in use just now."""


@dataclass(frozen=True)
class Entry:
    """A place in the cache."""

    folder: Path
    size: int

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")


class Cache:
    """At most `limit` bytes in `folder`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def entry(self, uri: str, identity: Identity) -> Entry:
        """Where what was posted lies, or will."""
        name = hashlib.sha256(f"{uri}\n{identity.size}\n{identity.etag}".encode()).hexdigest()[:40]
        return Entry(self._folder / name, identity.size)

    @contextmanager
    def held(self, entry: Entry, fetch: Callable[[Path], None], report: Callable[[], None]) -> Iterator[Path]:
        """The entry's folder, which stays there meanwhile.

        `fetch` puts its content into a folder that may hold a part of it; of several processes one fetches, and the
        others wait. `report` is called meanwhile and may raise.

        Raises:
            CacheFull: it is larger than the bound, or the disk is full.
            NoRoom: it would not fit beside what is in use.
        """
        if entry.size > self._limit:
            raise CacheFull(
                f"{entry.size:,} bytes are to be fetched and EVALSVC_CACHE_BYTES is {self._limit:,}; raise it to more"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheFull(f"{self._folder} cannot be made ({os_reason(error)}); move EVALSVC_CACHE") from None
        lock = self._shared(entry, fetch, report)
        try:
            os.utime(entry.lock)
            yield entry.folder
        finally:
            os.close(lock)

    def drop(self, entry: Entry) -> None:
        """Remove an entry that is not what it should be, unless somebody else uses it."""
        if (lock := _lock(entry.lock, fcntl.LOCK_EX)) is not None:
            _remove(entry)
            os.close(lock)

    def _shared(self, entry: Entry, fetch: Callable[[Path], None], report: Callable[[], None]) -> int:
        """A shared lock on a complete entry."""
        while True:
            lock = _lock(entry.lock, fcntl.LOCK_SH)
            if lock is not None and entry.folder.is_dir():
                return lock
            if lock is not None:
                os.close(lock)
            lock = _lock(entry.lock, fcntl.LOCK_EX)
            if lock is not None:
                try:
                    if not entry.folder.is_dir():
                        self._fill(entry, lock, fetch)
                finally:
                    os.close(lock)
                continue
            report()
            # Two that wait for each other's shared lock would do so in step for ever.
            time.sleep(POLL * (0.5 + random.random()))

    def _fill(self, entry: Entry, lock: int, fetch: Callable[[Path], None]) -> None:
        with self._accounting():
            self._make_room(entry)
            os.truncate(lock, 0)
            os.pwrite(lock, json.dumps({"size": entry.size}).encode(), 0)
            entry.partial.mkdir(exist_ok=True)
        try:
            fetch(entry.partial)
        except CheckpointError:
            _remove(entry)  # what was begun is not what was posted: nothing to go on with
            raise
        entry.partial.rename(entry.folder)

    @contextmanager
    def _accounting(self) -> Iterator[None]:
        """One process at a time decides what goes and what comes."""
        file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _make_room(self, wanted: Entry) -> None:
        others = sorted(self._entries(wanted), key=lambda found: found[0])
        total = wanted.size + sum(entry.size for _, entry in others)
        for _, entry in others:
            if total <= self._limit:
                return
            if (lock := _lock(entry.lock, fcntl.LOCK_EX)) is not None:
                _remove(entry)
                os.close(lock)
                total -= entry.size
        if total > self._limit:
            raise NoRoom

    def _entries(self, wanted: Entry) -> Iterator[tuple[int, Entry]]:
        for lock in self._folder.glob("*.lock"):
            folder = lock.with_suffix("")
            if folder == wanted.folder:
                continue
            try:
                used = lock.stat().st_mtime_ns
                size = int(json.loads(lock.read_bytes() or b'{"size": 0}')["size"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            yield used, Entry(folder, size)


def _lock(path: Path, kind: int) -> int | None:
    """A lock on the file that is at `path`, without waiting; None where another process is in the way."""
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


def _remove(entry: Entry) -> None:
    """Of an entry whose lock is held."""
    for folder in (entry.folder, entry.partial):
        shutil.rmtree(folder, ignore_errors=True)
    entry.lock.unlink(missing_ok=True)
