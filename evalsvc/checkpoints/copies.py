"""Copies of checkpoints: the spool in the data folder, and the cache of fetched checkpoints of a machine.

A copy is filled under a temporary name and renamed when it is complete, so a process that ends early leaves no half
copy. A copy in the spool stays until the service removes it.

In the cache, a process that uses a copy holds a shared lock on the file next to it, one that fills or removes the copy
an exclusive lock; the kernel releases locks when a process dies, and the next process resumes the copy. A lock file
says how large its copy is or will be, its modification time when the copy was last used.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import CacheFull, CheckpointError, DataDirectoryUnusable, InvalidRequest, os_reason
from evalsvc.files.atomic import FOR_GROUP

POLL = 0.2
"""Seconds between two checks of a copy that another process is filling."""

Fill = Callable[[Path], None]
"""Function that puts the files of a checkpoint into a folder, which may already hold some of them."""


@dataclass(frozen=True)
class Copy:
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
    return Copy(data_path / "spool" / str(checkpoint_id))


def spool_path(data_path: Path, checkpoint_id: int, path: str) -> Path:
    """Return the path of a spooled checkpoint, which keeps its file name for messages."""
    return spooled(data_path, checkpoint_id).folder / Path(path).name


def link_into(copy: Copy, source: Path, name: str) -> None:
    """Keep a checkpoint alive under a name by hard links, which take no disk space while it exists itself. Links in
    `source` are followed, so that the names of `opening.opened` lead to the files that were checked."""
    if (reason := _problem(copy, lambda folder: _put(source, folder / name, _link))) is not None:
        raise InvalidRequest(
            f"spool=link cannot link {source} to {copy.folder / name} ({reason}); links work on one file system only: "
            "use spool=copy, or move EVALSVC_DATA_DIR"
        )


def keep_uploads(copy: Copy, sources: Mapping[str, Path]) -> None:
    """Keep uploaded files under names, by hard links if the file system has them; the caller deletes the uploads once
    the post is stored."""

    def fill(folder: Path) -> None:
        for name, source in sources.items():
            target = folder / name
            for above in reversed(target.relative_to(folder).parents[:-1]):
                (folder / above).mkdir(exist_ok=True)
                os.chmod(folder / above, 0o750)  # as `FOR_GROUP`
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # another file system, or one without links; what else is wrong, copying finds too
                shutil.copyfile(source, target, follow_symlinks=False)
                os.utime(target, ns=(0, 0), follow_symlinks=False)  # the time is a part of the identity
            if not target.is_symlink():
                os.chmod(target, FOR_GROUP)

    if (reason := _problem(copy, fill)) is not None:
        raise DataDirectoryUnusable(
            f"uploads cannot be kept in {copy.folder} ({reason}); free some space in the data folder, or change its "
            "permissions"
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
    _put(source, target, _copy)


def _copy(source: str, target: str) -> None:
    status = os.stat(source)
    shutil.copyfile(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.chmod(target, FOR_GROUP)  # the owner of the source may have it for himself


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
        for folder, _, _ in os.walk(target):
            os.chmod(folder, 0o750)  # as `FOR_GROUP`; `copytree` copies the permissions of folders
    else:
        put(str(source), str(target))


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
        """Yield the folder of a copy, which one process fills; the others call `report`, which may raise, and wait."""
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
        while True:
            if (lock := _lock(copy.lock, fcntl.LOCK_SH)) is not None:
                if copy.folder.is_dir():
                    return lock
                os.close(lock)
            if (lock := _lock(copy.lock, fcntl.LOCK_EX)) is not None:
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
