"""What the data folder and the database take on the disk, measured at most every `EVERY` seconds."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.store.session import Store

EVERY = 60.0
"""Seconds until the disk is measured again; a page that watches the service's state does not change in between."""

PATIENCE = 1.0
"""Seconds for which files of the data folder are counted; what is counted until then is a lower bound."""


class DiskUse:
    """Measurements of one service's disk."""

    def __init__(self, folder: Path, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        """`folder`: the data folder."""
        self._folder = folder
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._measured_at = -EVERY
        self._last: documents.Disk | None = None

    def view(self, session: Session) -> documents.Disk | None:
        """Return the last measurement, or a new one; None while another thread makes the first one, and if the disk
        cannot be read."""
        if self._clock() - self._measured_at >= EVERY and self._lock.acquire(blocking=False):
            try:
                self._last = self._measure(session)
                self._measured_at = self._clock()
            finally:
                self._lock.release()
        return self._last

    def _measure(self, session: Session) -> documents.Disk | None:
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return None
        until = time.monotonic() + PATIENCE
        counted, complete = 0, True
        for size in _sizes(self._folder):
            counted += size
            if time.monotonic() > until:
                complete = False
                break
        return documents.Disk(
            free_bytes=usage.free,
            total_bytes=usage.total,
            data_bytes=counted,
            data_complete=complete,
            database_bytes=_database_bytes(session, self._store.url),
        )


def _sizes(folder: Path) -> Iterator[int]:
    for place, _folders, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue


def _database_bytes(session: Session, url: str) -> int | None:
    if session.get_bind().dialect.name == "postgresql":
        size: int | None = session.scalar(text("SELECT pg_database_size(current_database())"))
        return size
    file = re.fullmatch(r"sqlite(\+\w+)?:///([^?]+).*", url)
    if file is None:
        return None
    paths = [Path(file[2] + ending) for ending in ("", "-wal")]
    return sum(path.stat().st_size for path in paths if path.is_file())
