"""A probe of whether the database accepts writes. Successful reads do not prove that writes would succeed."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from evalsvc.config import shown_url

ROOM = 4 << 20
"""Bytes of free space below which the disk of an SQLite database counts as full. Since SQLite's log reuses its space,
small writes still succeed for a while on a disk where large writes fail."""

PROBE_EVERY, PROBE_AGAIN = 10.0, 1.0
"""Seconds between two probes: after a successful write, and after a failed write."""

LOCK_PATIENCE = 0.25
"""Seconds that a probe waits for a lock. A probe that meets another writer gives no new answer."""


class Writes:
    """The last failed write of a store, and a probe that tells whether a write would fail now."""

    def __init__(self, url: str, engine: Engine, explain: Callable[[Exception], str]) -> None:
        """Take the engine to probe. `explain` returns the message for an error of the database or its driver."""
        self._url = url
        self._engine = engine
        self._explain = explain
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._probe_at = 0.0

    def note_failure(self, error: Exception) -> None:
        """Record a failed write. The next probe replaces the record."""
        with self._lock:
            self._problem, self._probe_at = self._explain(error), time.monotonic() + PROBE_AGAIN

    def problem(self) -> str | None:
        """Return why writes fail; None if writes succeed. A probe, which changes nothing, renews the answer."""
        with self._lock:
            if time.monotonic() >= self._probe_at:
                self._problem = self._probe()
                self._probe_at = time.monotonic() + (PROBE_AGAIN if self._problem else PROBE_EVERY)
            return self._problem

    def _probe(self) -> str | None:
        database = self._engine.url.database
        try:
            if self._engine.dialect.name == "sqlite":
                return self._probe_sqlite(Path(database)) if database else None
            with self._engine.begin() as connection:
                connection.execute(text("SELECT txid_current()"))  # makes the commit write to the log
        except (SQLAlchemyError, sqlite3.Error) as error:
            return self._explain(error)
        return None

    def _probe_sqlite(self, file: Path) -> str | None:
        disk = os.statvfs(file.parent)
        if (room := disk.f_bavail * disk.f_frsize) < ROOM:
            return (
                f"the disk of the database {shown_url(self._url)} is full: {room:,} bytes are free, fewer than "
                f"{ROOM:,}; free some space"
            )
        try:
            with closing(sqlite3.connect(file, timeout=LOCK_PATIENCE, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("BEGIN IMMEDIATE")
                [version] = connection.execute("PRAGMA user_version").fetchone()
                connection.execute(f"PRAGMA user_version={int(version)}")
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return self._problem
        return None
