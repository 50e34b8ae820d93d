"""Opening the database: schema version, settings of the connection, and the errors a person meets."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from evalsvc.errors import DatabaseUnusable, DataDirectoryUnusable, SchemaVersionMismatch
from evalsvc.store import session as session_module
from evalsvc.store.session import Store, alembic_config, open_store
from evalsvc.store.tables import Checkpoint, Run


def test_migrations_go_up_down_and_up(database_url: str) -> None:
    config = alembic_config(database_url)
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    store = Store(database_url)
    assert set(sa.inspect(store.engine).get_table_names()) == {"alembic_version"}
    command.upgrade(config, "head")
    store.check_schema()
    store.close()


def test_tables_and_migrations_agree(database_url: str) -> None:
    """A table changed without a migration would work in tests that create tables, and nowhere else."""
    config = alembic_config(database_url)
    command.upgrade(config, "head")
    command.check(config)


def test_a_database_of_the_first_schema_keeps_its_rows(database_url: str) -> None:
    """SQLite makes a table anew to alter it, which would fail on, or take along, the rows that refer to it."""
    config = alembic_config(database_url)
    command.upgrade(config, "0001")
    store = Store(database_url)
    with store.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO runs (id, name, plan, created_at) VALUES (7, 'old', '{\"suites\": []}', '2026-01-01 00:00:00')"
        )
        columns = "id, run_id, step, variant, uri, path, size, mtime_ns, tags, spool, created_at"
        values = "3, 7, 0, 'raw', '/a.pt', '/a.pt', 1, 1, '{}', 'none', '2026-01-01 00:00:00'"
        connection.exec_driver_sql(f"INSERT INTO checkpoints ({columns}) VALUES ({values})")
    with pytest.raises(SchemaVersionMismatch, match="serve --migrate"):
        open_store(database_url, migrate=False)
    for revision in ("0002", "0001", "head"):
        (command.upgrade if revision != "0001" else command.downgrade)(config, revision)
        with store.reading() as session:
            rows = session.execute(sa.select(Run.name, Run.plan, Checkpoint.id).join(Checkpoint)).all()
        assert [tuple(row) for row in rows] == [("old", {"suites": []}, 3)]
    store.close()
    with (store := open_store(database_url, migrate=True)).reading() as session:
        assert session.get_one(Run, 7).base is None
    store.close()


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
    import threading

    def write(name: str) -> None:
        for index in range(10):
            with store.transaction() as session:
                count = session.scalar(sa.select(sa.func.count()).select_from(Run))
                session.add(Run(name=f"{name}-{index}-{count}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Run)) == 40


def test_another_schema_version_is_refused(store: Store) -> None:
    with store.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    head = ScriptDirectory.from_config(alembic_config(store.url)).get_current_head()
    for migrate in (False, True):
        with pytest.raises(SchemaVersionMismatch, match=rf"version 9999, this evalsvc needs {head}; back it up"):
            open_store(store.url, migrate)


def test_an_unwritable_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirectoryUnusable, match=r"file.* cannot be written: .*--data-dir"):
        Store(f"sqlite:///{tmp_path / 'file' / 'evalsvc.db'}")


def test_sqlite_on_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session_module, "_file_system", lambda folder: "nfs4")
    with pytest.raises(DatabaseUnusable, match=r"network file system \(nfs4\).*PostgreSQL"):
        Store(f"sqlite:///{tmp_path / 'evalsvc.db'}")


def test_an_unreachable_database_is_named_without_its_password() -> None:
    store = Store("postgresql+psycopg://user:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnusable, match=r"127\.0\.0\.1:1/x cannot be used") as error:
        store.ping()
    assert "secret" not in error.value.message


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(DatabaseUnusable, match=r"no database URL; use sqlite:////"):
        Store("evalsvc.db")
