"""The database: connection settings, transactions, and the schema version.

The service process is the only writer. Every write goes through `Store.transaction`, which commits all of its changes
or none.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, quote_plus

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import Session

from evalsvc.config import Settings, shown_url
from evalsvc.errors import DatabaseUnusable, SchemaVersionMismatch
from evalsvc.installation import missing_package, newer_version
from evalsvc.store.data_folder import make_data_folder, owner_url, unwritable
from evalsvc.store.events import note_events

T = TypeVar("T")

FIRST_REVISION = "0100"
"""The schema version of the first release. Databases of lower versions are not migrated."""

BUSY_TIMEOUT_MS = 10_000

POOL = {"pool_size": 20, "max_overflow": 40}
"""Connections in the pool, and further connections under load. The 40 threads of the web server, the coordinator and
the spooler need a connection each, so that no thread waits. PostgreSQL allows 100 connections by default."""

KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
SILENCE = {"connect_timeout": 10, **KEEPALIVES, "tcp_user_timeout": 25_000}
"""Parameters of libpq in seconds; `tcp_user_timeout` is in milliseconds. By libpq's defaults, requests would wait
minutes for a dead server."""

DATA_CORRUPTED = ("XX001", "XX002")
"""SQLSTATE codes of damaged tables and indexes."""

NETWORKED = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "ceph", "glusterfs", "9p", "beegfs")
"""File systems of other machines."""


class _WritingSession(Session):
    """The session of `Store.transaction`, which writes an event whichever function changes a state."""


event.listen(_WritingSession, "after_flush", note_events)


def once(session: Session, key: object, make: Callable[[], T]) -> T:
    """Return what `make` reads, read once in a session that only reads."""
    if isinstance(session, _WritingSession):
        return make()
    if key not in session.info:
        session.info[key] = make()
    answer: T = session.info[key]
    return answer


class Store:
    """The database of one service."""

    check: Callable[[Session], None] | None = None
    """A check at the beginning of each writing transaction; see `CoordinatorLock.fence`."""

    def __init__(self, url: str) -> None:
        """Connect to `url` (an SQLAlchemy URL). Call `migrate` or `check_schema` before anything else."""
        self.url = url
        self.engine = _create_engine(url)
        self.writes = Writes(url, self.engine)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Yield a session for writing. Commit at the end; roll back on an exception."""
        engine = self.engine.execution_options(writes=True)
        try:
            with _WritingSession(engine, expire_on_commit=False) as session, session.begin():
                if self.check is not None:
                    self.check(session)
                yield session
        except SQLAlchemyError as error:
            if is_outage(error):
                self.writes.note_failure(error)
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session that only reads. With SQLite, all queries of the session read one snapshot."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    def ping(self) -> None:
        """Raise DatabaseUnusable unless the database answers."""
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            raise database_unusable(self.url, error) from None

    def schema_version(self) -> str | None:
        """Return the revision of the newest migration that the database has; None for an empty database."""
        try:
            with self.engine.connect() as connection:
                return MigrationContext.configure(connection).get_current_revision()
        except SQLAlchemyError as error:
            raise database_unusable(self.url, error) from None

    def check_schema(self) -> None:
        """Raise SchemaVersionMismatch unless the database has this program's schema version."""
        revision, expected = self.schema_version(), _scripts().get_current_head()
        if revision == expected:
            return
        if revision is not None and revision < FIRST_REVISION:
            advice = (
                "an evalsvc from before the first release made the database: start that version, or choose a new "
                "database with --data-dir or --database-url"
            )
        elif revision is not None and not is_known_revision(revision):
            advice = f"a newer evalsvc made the database: start that version ({newer_version()})"
        else:
            advice = (
                "start the evalsvc that made the database, or back up with that version and start "
                "`evalsvc serve --migrate`"
            )
        raise SchemaVersionMismatch(
            f"the database {shown_url(self.url)} has schema version {revision or 'none'}, this evalsvc needs "
            f"{expected}; {advice}"
        )

    def migrate(self) -> None:
        """Migrate the database to this program's schema version."""
        revision = self.schema_version()
        if revision is not None and not is_known_revision(revision):
            self.check_schema()
        try:
            with translated(self.url):
                command.upgrade(alembic_config(self.url), "head")
        except OSError as error:
            raise unwritable(str(error.filename or "the data folder"), error) from None

    def close(self) -> None:
        self.engine.dispose()


def open_store(url: str, migrate: bool, *, read_only: bool = False) -> Store:
    """Open a store of this program's schema version. An empty database gets its tables, unless `read_only` is set."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(url)))
        if not read_only and (migrate or store.schema_version() is None):
            store.migrate()
        store.check_schema()
        stack.pop_all()
    return store


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Translate errors that mean an unreachable, full or damaged database to DatabaseUnusable."""
    try:
        yield
    except SQLAlchemyError as error:
        if not is_outage(error):
            raise
        raise database_unusable(url, error) from error


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration with the migrations of this installation."""
    config = Config()
    config.set_main_option("script_location", str(_migrations()))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def _migrations() -> Path:
    # The migrations are inside the package in a wheel, and next to the package in a checkout.
    packaged = Path(str(resources.files("evalsvc"))) / "migrations"
    return packaged if packaged.is_dir() else packaged.parents[1] / "migrations"


@cache
def _scripts() -> ScriptDirectory:
    """Return the migrations, cached: reading imports a module each, and every readiness check needs the newest."""
    return ScriptDirectory(str(_migrations()))


def is_known_revision(revision: str) -> bool:
    return revision in {item.revision for item in _scripts().walk_revisions()}


def _create_engine(url: str) -> Engine:
    parsed = parse_url(url)
    try:
        if parsed.get_backend_name() != "sqlite":
            arguments = connect_arguments(url)
            return create_engine(parsed, pool_pre_ping=True, hide_parameters=True, connect_args=arguments, **POOL)
    except (ArgumentError, ImportError) as error:
        if isinstance(error, ImportError) and url.startswith("postgresql+psycopg:"):
            raise missing_package("psycopg", "a PostgreSQL database", "postgresql") from None
        raise _no_url(url) from None
    file = Path(parsed.database or "")
    make_data_folder(file.parent)
    if (kind := _file_system(file.parent)) in NETWORKED:
        raise DatabaseUnusable(
            f"the folder {file.parent} is on a network file system ({kind}), where SQLite loses data; "
            "choose a local folder with --data-dir, or use PostgreSQL with --database-url (EVALSVC_DATABASE_URL)"
        )
    if parsed.database:
        try:  # SQLite gives its other files the same permissions
            with suppress(FileExistsError):
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise unwritable(str(file), error) from None
    connect = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    engine = create_engine(parsed, connect_args=connect, hide_parameters=True, **POOL)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def parse_url(url: str) -> URL:
    """Return the parts of a database's URL. No other function may parse the URL: SQLAlchemy's errors quote it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is no number
        raise _no_url(url) from None
    if parsed.password is not None and "@" in f"{parsed.host}{parsed.database}":
        raise DatabaseUnusable(
            f"--database-url (EVALSVC_DATABASE_URL) is {shown_url(url)!r}, whose password has an unescaped @; write "
            "%40 for @, and %2F, %3A, %3F for / : ?"
        )
    return parsed


def _no_url(url: str) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"--database-url (EVALSVC_DATABASE_URL) is {shown_url(url)!r}, which is no database URL; use "
        "sqlite:////folder/file.db or postgresql://USER:PASSWORD@HOST:PORT/NAME; in the password, write %40 for @, "
        "and %2F, %3A, %3F for / : ?"
    )


def open_known(settings: Settings, advice: str = "") -> Store:
    """Open the database of a service; raise DatabaseUnusable, with `advice`, if there is none or if the database is
    empty. Never begin one: with another URL than the service's, it would be an empty one."""
    url, owner = settings.database, owner_url(settings.data_path)
    parsed = parse_url(url)
    where = "say with --data-dir or --database-url (EVALSVC_DATA_DIR, EVALSVC_DATABASE_URL) where the service has it"
    where += advice
    if owner is not None:
        folder = f"{settings.data_path} is the data folder of {owner}"
        where = f"{folder}: give the URL of that database with --database-url (EVALSVC_DATABASE_URL)"
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise DatabaseUnusable(f"there is no database {shown_url(url)}; {where}")
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(url)))
        if store.schema_version() is None:
            raise DatabaseUnusable(f"the database {shown_url(url)} is empty; {where}")
        stack.pop_all()
    return store


def connect_arguments(url: str) -> dict[str, int | str]:
    """Return connection parameters that detect a dead server within seconds, without those that the URL sets."""
    query = parse_url(url).query
    return {name: value for name, value in SILENCE.items() if name not in query}


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin the transaction before the first write only
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes needs the write lock from its beginning: if another transaction wrote in
    # between, SQLite would refuse the write.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _file_system(folder: Path) -> str:
    mounts = Path("/proc/mounts")
    kinds = {}
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _device, point, kind = line.split()[:3]
        if folder.resolve().is_relative_to(point):
            kinds[point] = kind
    return kinds[max(kinds, key=len)] if kinds else "unknown"


def is_outage(error: Exception) -> bool:
    """Tell whether an error means that the database is unreachable, full or damaged. A retry may succeed."""
    disconnected = isinstance(error, DBAPIError) and error.connection_invalidated
    return disconnected or isinstance(error, (OperationalError, InterfaceError, NoConnection)) or is_damage(error)


def is_damage(error: Exception) -> bool:
    """Tell whether an error means that stored data is unreadable or lost."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        return getattr(cause, "sqlstate", None) in DATA_CORRUPTED
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(cause).startswith("no such table")


def database_unusable(url: str, error: Exception) -> DatabaseUnusable:
    """Return the DatabaseUnusable to raise for an error of the database or its driver, without passwords."""
    cause = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    parsed = parse_url(url)
    passwords = [parsed.password, parsed.query.get("password"), parsed.query.get("sslpassword")]
    secrets = {str(secret) for secret in passwords if secret}
    for form in {form for secret in secrets for form in (secret, quote_plus(secret), quote(secret, safe=""))}:
        cause = cause.replace(form, "***")
    cause = " ".join(cause.split()).rstrip(".?")
    if is_damage(error):
        return DatabaseUnusable(
            f"the database {shown_url(url)} is damaged: {cause}; stop the service and restore a backup; without a "
            "backup, `sqlite3 FILE .recover` saves what can still be read of an SQLite file"
        )
    return DatabaseUnusable(
        f"the database {shown_url(url)} cannot be used: {cause}; fix the cause and try again, "
        "nothing that was stored is lost"
    )


ROOM = 4 << 20
"""Bytes of free space below which the disk of an SQLite database counts as full: small writes would succeed for a
while, since SQLite's log reuses its space."""

PROBE_EVERY, PROBE_AGAIN = 10.0, 1.0
"""Seconds between two probes: after a successful write, and after a failed write."""

LOCK_PATIENCE = 0.25
"""Seconds that a probe waits for a lock. A probe that meets another writer gives no new answer."""


class Writes:
    """The last failed write of a store, and a probe that tells whether a write would fail now."""

    def __init__(self, url: str, engine: Engine) -> None:
        self._url = url
        self._engine = engine
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._probe_at = 0.0

    def note_failure(self, error: Exception) -> None:
        """Record a failed write. The next probe replaces the record."""
        with self._lock:
            self._problem, self._probe_at = database_unusable(self._url, error).message, time.monotonic() + PROBE_AGAIN

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
            return database_unusable(self._url, error).message
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
