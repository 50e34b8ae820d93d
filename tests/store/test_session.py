"""Opening the database: schema version, settings of the connection, the errors a person meets; and its tokens."""

import asyncio
import re
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread
import httpx2
import pytest
import sqlalchemy as sa
from alembic import command
from app_in_process import app_on_port
from migrated import add_migration
from posts_and_results import act, ask
from sqlalchemy.orm import Session

from evalsvc.access_tokens import hash_token
from evalsvc.config import Settings
from evalsvc.errors import (
    Conflict,
    DatabaseUnusable,
    DataDirectoryUnusable,
    InvalidRequest,
    MissingPackage,
    SchemaVersionMismatch,
    UnknownName,
)
from evalsvc.installation import pip_install
from evalsvc.store import session as session_module
from evalsvc.store.lock import CoordinatorLock
from evalsvc.store.session import POOL, Store, alembic_config, once, open_known, open_store
from evalsvc.store.tables import Run, Token
from evalsvc.store.tokens import all_tokens, create_token, has_tokens, note_use, revoke_token


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("empty_postgresql", id="postgresql")])
def test_tables_and_migrations_agree(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """A table changed without a migration would work in tests that create tables, and nowhere else."""
    database_url = f"sqlite:///{tmp_path / 'evalsvc.db'}" if kind == "sqlite" else request.getfixturevalue(kind)
    config = alembic_config(database_url)
    command.upgrade(config, "head")
    command.check(config)
    if kind == "sqlite":
        with sa.create_engine(database_url).connect() as connection:
            made = dict(connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all())
        assert {name for name, sql in made.items() if "WITHOUT ROWID" in sql} == {"metric_values"}
        lasting = {name for name, sql in made.items() if "AUTOINCREMENT" in sql}
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
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    environment = {"EVALSVC_DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}", "PATH": ""}
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)
    open_store(f"sqlite:///{tmp_path / 'x.db'}", migrate=False).close()


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


def test_a_folder_that_loses_data_or_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataDirectoryUnusable, match=r"file.* cannot be written: .*--data-dir"):
        Store(f"sqlite:///{tmp_path / 'file' / 'evalsvc.db'}")
    monkeypatch.setattr(session_module, "_file_system", lambda folder: "nfs4")
    with pytest.raises(DatabaseUnusable, match=r"network file system \(nfs4\).*PostgreSQL"):
        Store(f"sqlite:///{tmp_path / 'evalsvc.db'}")


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\0" + b"\xa5" * 9000])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "evalsvc.db").write_bytes(content)
    with pytest.raises(DatabaseUnusable, match=r"evalsvc\.db is damaged: file is not a database; .* a backup") as error:
        open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False)
    assert "nothing that was stored is lost" not in error.value.message
    assert (tmp_path / "evalsvc.db").read_bytes() == content


PASSWORDS = "hunter2@ hun%2Fter2@ x@hunter2@ x@y/hunter2@ hunter2/x@y@ x@y:hunter2@ hunter2?x@ x?hunter2@"


QUOTED = [
    "postgres//me:hunter2@127.0.0.1/x",
    "postgresql+psycopg://me@127.0.0.1:1/x?password=hunter2",
    "postgresql+psycopg://me:hunter2@127.0.0.1:1/x?nonsense=1",
    "nosuchdb://me:hunter2@127.0.0.1/x",
    *(f"postgresql+psycopg://me:{password}127.0.0.1:1/x" for password in PASSWORDS.split()),
]


@pytest.mark.parametrize("url", QUOTED)
def test_no_error_of_the_database_shows_its_password(url: str) -> None:
    """Those of the driver and of SQLAlchemy quote what they were given."""
    with pytest.raises(DatabaseUnusable) as error:
        Store(url).ping()
    assert "hunter2" not in error.value.message
    assert "hun/ter2" not in error.value.message


ESCAPES = "me:hun#ter2 me:hun#ter2/x me:x@:hunter2@127.0.0.1/x me:x@y:hun#ter2@127.0.0.1:1/x me:hunter2@127.0.0.1:one/x"


def test_no_reader_of_the_address_shows_its_password() -> None:
    """`tokens list` and `backup` ended in a traceback, whose last line was the password."""
    words = r"--database-url \(EVALSVC_DATABASE_URL\) .* write %40 for @"
    for url in ("hunter2", *(f"postgresql+psycopg://{rest}" for rest in ESCAPES.split())):
        for use in (Store, CoordinatorLock, lambda url: open_known(Settings(database_url=url))):
            with pytest.raises(DatabaseUnusable, match=words) as error:
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


def test_a_request_never_waits_for_a_connection() -> None:
    """Each of the web server's threads reads by a connection of its own; coordinator and spooler have theirs."""

    async def threads() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert sum(POOL.values()) >= asyncio.run(threads()) + 4


def test_a_session_that_only_reads_reads_once_and_one_that_writes_reads_what_it_wrote(store: Store) -> None:
    def runs(session: Session) -> int:
        return once(session, "runs", lambda: session.scalar(sa.select(sa.func.count()).select_from(Run)) or 0)

    with store.reading() as reading, store.transaction() as writing:
        before = runs(reading), runs(writing)
        writing.add(Run(name="run-a"))
        writing.flush()
        assert (before, runs(reading), runs(writing)) == ((0, 0), 0, 1)
    with store.reading() as later:
        assert runs(later) == 1


def test_no_connection_is_an_error_that_can_be_tried_again(tmp_path: Path) -> None:
    """It was a 500 that named a bug."""
    with app_on_port(tmp_path / "data") as (url, state), ExitStack() as stack:
        for _ in range(sum(POOL.values())):
            stack.enter_context(state.store.engine.connect())
        state.store.engine.pool._timeout = 0.1
        response = httpx2.get(f"{url}/v1/runs", trust_env=False)
        assert (response.status_code, response.json()["code"]) == (503, "database_unusable")


def test_only_the_hash_is_kept(store: Store) -> None:
    """Whoever reads the database, or a backup of it, must not get in by what is there."""
    token = act(store, create_token, "trainer", "submit", 30)
    with store.engine.connect() as connection:
        (row,) = connection.execute(sa.text("SELECT * FROM tokens")).mappings().all()
    assert row["sha256"] == hash_token(token)
    assert token not in str(dict(row))
    (kept,) = ask(store, all_tokens)
    assert (kept.name, kept.scope, kept.last_used_at, kept.revoked_at) == ("trainer", "submit", None, None)
    assert kept.expires_at is not None
    assert abs(kept.expires_at - kept.created_at - timedelta(days=30)) < timedelta(seconds=5)


def test_a_revoked_name_is_free_and_its_row_stays(store: Store) -> None:
    """A service whose last token is revoked would else be open again to everyone on the machine."""
    assert not ask(store, has_tokens)
    first = act(store, create_token, "ci", "read")
    with pytest.raises(Conflict, match=r"named 'ci' exists; revoke that token first \(evalsvc tokens revoke ci\)"):
        act(store, create_token, "ci", "read")
    act(store, revoke_token, "ci")
    assert ask(store, has_tokens)
    assert act(store, create_token, "ci", "admin") != first
    assert [token.revoked_at is None for token in ask(store, all_tokens)] == [False, True]


def test_two_tokens_at_once_do_not_get_one_name(store: Store) -> None:
    """The check before is no protection against a command that runs at the same time; the index is."""
    act(store, create_token, "ci", "read")
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as session:
        session.add(Token(name="ci", scope="admin", sha256="0" * 64))


def test_tokens_that_are_refused(store: Store) -> None:
    act(store, create_token, "trainer", "read")
    for words, days in {"--days 0: give a number above 0": 0, "--days 1e": 1e9}.items():
        with pytest.raises(InvalidRequest, match=words):
            act(store, create_token, "ci", "read", days)
    with pytest.raises(InvalidRequest, match="'my ci' is not a name"):
        act(store, create_token, "my ci", "read")
    with pytest.raises(UnknownName, match="did you mean 'trainer'"):
        act(store, revoke_token, "trainr")


def test_uses_of_tokens_are_noted(store: Store) -> None:
    act(store, create_token, "ci", "read")
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for token in (1, 99):
        act(store, note_use, token, when)
    assert [token.last_used_at for token in ask(store, all_tokens)] == [when]
