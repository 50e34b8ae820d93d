"""Opening the database: schema version, settings of the connection, and the errors a person meets."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import anyio.to_thread
import httpx2
import pytest
import sqlalchemy as sa
from alembic import command
from app_in_process import app_on_port
from migrated import add_migration

from evalsvc.errors import DatabaseUnusable, DataDirectoryUnusable, MissingPackage, SchemaVersionMismatch
from evalsvc.installation import pip_install
from evalsvc.store import session as session_module
from evalsvc.store.lock import CoordinatorLock
from evalsvc.store.session import POOL, Store, alembic_config, open_store, require_database
from evalsvc.store.tables import Run


def test_tables_and_migrations_agree(database_url: str) -> None:
    """A table changed without a migration would work in tests that create tables, and nowhere else."""
    config = alembic_config(database_url)
    command.upgrade(config, "head")
    command.check(config)
    if database_url.startswith("sqlite"):
        with sa.create_engine(database_url).connect() as connection:
            made = dict(connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all())
        clustered = {name for name, sql in made.items() if "WITHOUT ROWID" in sql}
        lasting = {name for name, sql in made.items() if "AUTOINCREMENT" in sql}
        assert clustered == {"metric_values"}
        assert lasting == {"artifacts", "checkpoints", "evaluations", "shards", "tasks"}


def test_an_older_schema_is_migrated_if_asked(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.transaction() as session:
        session.add(Run(name="old"))
    add_migration(tmp_path / "migrations", monkeypatch)
    with pytest.raises(SchemaVersionMismatch, match=r"version 0100, .*; start the evalsvc that made .*serve --migrate"):
        open_store(store.url, migrate=False)
    with (migrated := open_store(store.url, migrate=True)).reading() as session:
        assert session.scalars(sa.select(Run.name)).all() == ["old"]
    assert "added" in sa.inspect(migrated.engine).get_table_names()
    migrated.close()


@pytest.mark.usefixtures("short_process")
def test_alembic_works_from_the_repository_root(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=root,
        env={"EVALSVC_DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    open_store(f"sqlite:///{tmp_path / 'x.db'}", migrate=False).close()


def test_an_open_transaction_is_rolled_back_on_an_error(store: Store) -> None:
    def add_and_fail() -> None:
        with store.transaction() as session:
            session.add(Run(name="a"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_and_fail()
    with store.reading() as session:
        assert session.scalars(sa.select(Run)).all() == []


def test_a_writer_waits_for_another_one(store: Store) -> None:
    """SQLite raised `database is locked` at once where a transaction that had read began to write."""

    def write(number: int) -> None:
        with store.transaction() as session:
            count = session.scalar(sa.select(sa.func.count()).select_from(Run))
            session.add(Run(name=f"{number}-{count}"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(40)))
    with store.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Run)) == 40


@pytest.mark.parametrize(
    ("version", "do"), [("0018", "before the first release made .* choose a new"), ("9999", "a newer .*pip install")]
)
def test_another_schema_version_is_refused(store: Store, version: str, do: str) -> None:
    with store.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
    for migrate in (False, True):
        with pytest.raises(SchemaVersionMismatch, match=rf"version {version}, this evalsvc needs 0100; .*{do}"):
            open_store(store.url, migrate)


def test_a_missing_driver_of_postgresql_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingPackage, match=re.escape(f"'psycopg'; run: {pip_install('postgresql')}")):
        Store("postgresql+psycopg://evalsvc@db.example/evalsvc")


def test_an_unwritable_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirectoryUnusable, match=r"file.* cannot be written: .*--data-dir"):
        Store(f"sqlite:///{tmp_path / 'file' / 'evalsvc.db'}")


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\0" + b"\xa5" * 9000])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "evalsvc.db").write_bytes(content)
    with pytest.raises(DatabaseUnusable, match=r"evalsvc\.db is damaged: file is not a database; .* a backup") as error:
        open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False)
    assert "nothing that was stored is lost" not in error.value.message
    assert (tmp_path / "evalsvc.db").read_bytes() == content


def test_sqlite_on_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session_module, "_file_system", lambda folder: "nfs4")
    with pytest.raises(DatabaseUnusable, match=r"network file system \(nfs4\).*PostgreSQL"):
        Store(f"sqlite:///{tmp_path / 'evalsvc.db'}")


PASSWORDS = "hunter2@ hun%2Fter2@ x@hunter2@ x@y/hunter2@ hunter2/x@y@ x@y:hunter2@ hunter2?x@ x?hunter2@"


@pytest.mark.parametrize(
    "url",
    [
        "postgres//me:hunter2@127.0.0.1/x",
        "postgresql+psycopg://me@127.0.0.1:1/x?password=hunter2",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/x?nonsense=1",
        "nosuchdb://me:hunter2@127.0.0.1/x",
        *(f"postgresql+psycopg://me:{password}127.0.0.1:1/x" for password in PASSWORDS.split()),
    ],
)
def test_no_error_of_the_database_shows_its_password(url: str) -> None:
    """Those of the driver and of SQLAlchemy quote what they were given."""
    with pytest.raises(DatabaseUnusable) as error:
        Store(url).ping()
    assert "hunter2" not in error.value.message
    assert "hun/ter2" not in error.value.message


@pytest.mark.parametrize("use", [Store, CoordinatorLock, require_database])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:hun#ter2",
        "postgresql+psycopg://me:hun#ter2/x",
        "postgresql+psycopg://me:x@:hunter2@127.0.0.1/x",
        "postgresql+psycopg://me:x@y:hun#ter2@127.0.0.1:1/x",
        "postgresql+psycopg://me:hunter2@127.0.0.1:one/x",
        "hunter2",
    ],
)
def test_no_reader_of_the_address_shows_its_password(url: str, use: Callable[[str], object]) -> None:
    """`tokens list` and `backup` ended in a traceback, whose last line was the password."""
    with pytest.raises(DatabaseUnusable, match=r"--database-url \(EVALSVC_DATABASE_URL\) .* write %40 for @") as error:
        use(url)
    assert "ter2" not in error.value.message


def test_a_new_database_is_its_owners_only(tmp_path: Path) -> None:
    """Its folder, its file and what SQLite puts beside it; what is there already stays as it is."""
    store = open_store(f"sqlite:///{tmp_path / 'data' / 'evalsvc.db'}", migrate=False)
    with store.transaction() as session:
        session.add(Run(name="a"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    store.close()
    assert modes == dict.fromkeys(["evalsvc.db", "evalsvc.db-wal", "evalsvc.db-shm"], 0o600)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    open_store(f"sqlite:///{tmp_path / 'shared' / 'evalsvc.db'}", migrate=False).close()
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(DatabaseUnusable, match=r"no database URL; use sqlite:////"):
        Store("evalsvc.db")


def test_a_request_never_waits_for_a_connection() -> None:
    """Each of the web server's threads reads by a connection of its own; coordinator and spooler have theirs."""

    async def threads() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert sum(POOL.values()) >= asyncio.run(threads()) + 4


def test_no_connection_is_an_error_that_can_be_tried_again(tmp_path: Path) -> None:
    """It was a 500 that named a bug."""
    with app_on_port(tmp_path / "data") as (url, state), ExitStack() as stack:
        for _ in range(sum(POOL.values())):
            stack.enter_context(state.store.engine.connect())
        state.store.engine.pool._timeout = 0.1
        response = httpx2.get(f"{url}/v1/runs", trust_env=False)
        assert (response.status_code, response.json()["code"]) == (503, "database_unusable")
