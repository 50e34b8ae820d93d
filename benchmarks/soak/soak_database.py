"""The databases that a fault run happens on, and what may happen to each."""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from postgresql_server import PostgresqlServer


class Database(ABC):
    url: str
    faults: ClassVar[tuple[str, ...]]
    """What only this one suffers."""

    @abstractmethod
    def close(self) -> None:
        """End what was started for it."""


class SqliteDatabase(Database):
    """A file; another program may hold its lock."""

    faults = ("lock-database",)

    def __init__(self, folder: Path) -> None:
        self.file = folder / "evalsvc.db"
        self.url = f"sqlite:///{self.file}"
        self._writer: sqlite3.Connection | None = None

    def lock(self) -> bool:
        """Hold the lock of writers until `unlock`; False where it is held already."""
        if self._writer is not None:
            return False
        writer = sqlite3.connect(self.file, timeout=30, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        self._writer = writer
        return True

    def unlock(self) -> None:
        if self._writer is not None:
            self._writer.execute("ROLLBACK")
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        self.unlock()


class PostgresqlDatabase(Database):
    """A server of its own, which may be stopped or killed."""

    faults = ("stop-database", "kill-database")

    def __init__(self) -> None:
        self._server = PostgresqlServer()
        self.url = self._server.url
        self._up = True

    def stop(self) -> bool:
        return self._end(self._server.stop)

    def kill(self) -> bool:
        return self._end(self._server.kill)

    def start(self) -> None:
        self._server.start()
        self._up = True

    def close(self) -> None:
        self._server.close()

    def _end(self, how: Callable[[], None]) -> bool:
        """False where it is down already."""
        if not self._up:
            return False
        self._up = False
        how()
        return True
