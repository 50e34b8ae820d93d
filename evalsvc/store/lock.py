"""The lock that makes one process the coordinator of a database, which dispatches shards and stores results.
It answers the `accident` of two services on one database.

In PostgreSQL the lock belongs to a session; with SQLite, the process locks a file next to the database. Both locks end
with the process. A process that acquires the lock begins a term, which is a number in the database. Each transaction of
a coordinator checks that the coordinator's term is the newest, so a process that lost the lock unnoticed can store
nothing once another process has begun a term.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
import uuid
from contextlib import ExitStack, closing, suppress
from copy import copy
from pathlib import Path

from sqlalchemy import Connection, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from evalsvc.config import shown_url
from evalsvc.errors import DatabaseInUse
from evalsvc.store.data_folder import unwritable
from evalsvc.store.session import KEEPALIVES, Store, connect_arguments, database_unusable, parse_url
from evalsvc.store.tables import Term, now

log = logging.getLogger(__name__)

KEY = int.from_bytes(b"evalsvc", "big")
"""The key of the advisory lock. PostgreSQL has separate keys for each database."""


class CoordinatorLock:
    """The lock and the term of one process. Only transactions of `fence` may use the object in several threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        parsed = parse_url(url)
        file = Path(parsed.database).resolve() if parsed.database else None
        self._lock: _SessionLock | _FileLock
        self._lock = _FileLock(file) if parsed.get_backend_name() == "sqlite" else _SessionLock(url)
        self._term: int | None = None

    def acquire(self, patience: float = 0.0) -> None:
        """Acquire the lock; retry for `patience` seconds, since a process that just ended may still have the lock."""
        deadline = time.monotonic() + patience
        while not self._lock.try_acquire():
            if time.monotonic() >= deadline:
                raise DatabaseInUse(
                    f"the database {shown_url(self._url)} is served by another evalsvc{self._holder()}; stop the other "
                    "service; only `evalsvc serve --read-only` may run next to it"
                )
            time.sleep(0.1)

    def is_held(self) -> bool:
        """Tell whether this process still has the lock. After a loss, call `acquire` again."""
        is_held = self._lock.is_held()
        self._term = self._term if is_held else None
        return is_held

    def has_term(self) -> bool:
        return self._term is not None

    def begin_term(self, store: Store) -> None:
        """Begin a term while the lock is held. The process with the previous term can store nothing from now on."""
        with store.transaction() as session:
            row = _row(session)
            number = row.number + 1
            row.number, row.holder, row.since = number, _who(), now()
        self._term = number

    def fence(self, store: Store) -> Store:
        """Return the store, whose transactions raise DatabaseInUse unless this process's term is the newest."""
        fenced = copy(store)
        fenced.check = self.require_term
        return fenced

    def require_term(self, session: Session) -> None:
        # While this transaction locks the row, no other process can begin a term.
        newest = session.scalar(select(Term.number).with_for_update(read=True))
        if self._term is None or newest != self._term:
            self._term = None
            raise DatabaseInUse(
                f"this process lost the lock of the database {shown_url(self._url)}, which is served by another evalsvc"
                f"{self._holder()}; stop this service, or restart this service once the other one has ended"
            )

    def release(self) -> None:
        self._term = None
        self._lock.release()

    def _holder(self) -> str:
        # A database of another schema version may have no such table.
        with closing(Store(self._url)) as store, suppress(SQLAlchemyError), store.reading() as session:
            if row := session.scalar(select(Term)):
                return f" ({row.holder}, since {row.since:%Y-%m-%d %H:%M} UTC)"
        return ""


class _FileLock:
    """A lock on a file next to the database. Closing the database file itself would drop SQLite's own locks."""

    def __init__(self, database: Path | None) -> None:  # None: in memory, which no other process can open
        self._path = None if database is None else database.with_name(database.name + ".lock")
        self._file: int | None = None

    def try_acquire(self) -> bool:
        if self._path is None or self.is_held():
            return True
        self.release()
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unwritable(str(self._path), error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return self.is_held()

    def is_held(self) -> bool:
        if self._path is None or self._file is None:
            return self._path is None
        try:  # if the lock file was removed, another process may lock a new file
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _SessionLock:
    """An advisory lock on a dedicated connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        # Autocommit, or a transaction would stay open as long as the service runs.
        self._engine = create_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            connect_args=connect_arguments(url) | {"application_name": f"evalsvc coordinator, {_who()}"[:63]},
        )
        self._connection: Connection | None = None

    def try_acquire(self) -> bool:
        if self.is_held():
            return True
        try:
            with ExitStack() as stack:
                connection = stack.enter_context(self._engine.connect())
                # Without keepalives, the server would keep the lock of an unreachable machine for hours.
                for setting, value in KEEPALIVES.items():
                    connection.exec_driver_sql(f"SET tcp_{setting} = {value}")
                if connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({KEY})").scalar():
                    self._connection = connection
                    stack.pop_all()  # the connection stays open
        except SQLAlchemyError as error:
            raise database_unusable(self._url, error) from None
        return self._connection is not None

    def is_held(self) -> bool:
        if self._connection is None:
            return False
        try:  # PostgreSQL releases the lock when the connection ends
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            log.warning("the coordinator lost its lock: %s", database_unusable(self._url, error))
            self.release()
            return False
        return True

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


def database_id(store: Store) -> str:
    """Return the random id of the database. A copied or moved database has the same id."""
    with store.transaction() as session:
        row = _row(session)
        row.database_id = row.database_id or uuid.uuid4().hex
        return row.database_id


def _row(session: Session) -> Term:
    row = session.scalar(select(Term).with_for_update())
    if row is None:
        session.add(row := Term(id=1, number=0, holder=_who(), since=now()))
    return row


def _who() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
