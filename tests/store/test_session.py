"""Opening the database: schema version, settings of the connection, and the errors a person meets."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from migrated import FIRST_ROWS, insert_rows

from evalsvc.errors import DatabaseUnusable, DataDirectoryUnusable, ItemsLost, MissingPackage, SchemaVersionMismatch
from evalsvc.files.items import keep_items, pack_items
from evalsvc.installation import pip_install
from evalsvc.store import session as session_module
from evalsvc.store.lock import CoordinatorLock
from evalsvc.store.queue.shards import take
from evalsvc.store.results import read_task_items
from evalsvc.store.session import Store, alembic_config, open_store, require_database
from evalsvc.store.tables import Checkpoint, Evaluation, Json, Run, Task


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
    insert_rows(store, FIRST_ROWS)
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


ITEMS: list[Any] = [
    {"benchmark": "arc", "index": 0, "acc": 1, "bits": 0.1 + 0.2, "scores": [[-1.5, 0], [-2e-300, 1]], "acc_norm": 1.0},
    {"benchmark": "wsc", "index": 7, "text": ["é\n"], "bits": "NaN", "left": None, "flag": True},
    {"index": 2, "bits": "-Infinity", "x": 1e22},
]


def insert_tasks(store: Store, *items: list[Any] | None) -> None:
    """Tasks with these items, as the second schema has them."""
    task = {"evaluation_id": 5, "kind": "language", "parameters": {}, "state": "succeeded", "metrics": []}
    tasks = [
        task | {"id": 11 + index, "index": index, "name": f"text-{index}"} | ({} if found is None else {"items": found})
        for index, found in enumerate(items)
    ]
    insert_rows(store, FIRST_ROWS | {"tasks": tasks})


def stored_items(store: Store, folder: Path) -> dict[str, Any]:
    with store.reading() as session:
        tables = read_task_items(session.get_one(Evaluation, 5), folder)
        return {name: list(table.rows()) for name, table in tables.items()}


def same(found: Any, expected: Any) -> bool:
    """To the type of each number, which == does not see; PostgreSQL's JSONB keeps no order of keys."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def test_items_of_the_json_column_are_carried_over(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up with what a row held, down with what is in a row and in a file, and up again: nothing is lost or rounded."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path))
    config = alembic_config(database_url)
    command.upgrade(config, "0002")
    store = Store(database_url)
    insert_tasks(store, ITEMS, None, [])
    command.upgrade(config, "head")
    expected = {"text-0": ITEMS, "text-1": [], "text-2": []}
    assert same(stored_items(store, tmp_path / "items"), expected)
    many = [{"index": index, "noise": os.urandom(16).hex(), "acc": 1.0} for index in range(8_000)]
    kept = keep_items(tmp_path / "items", pack_items(many))
    with store.transaction() as session:
        session.execute(sa.update(Task).where(Task.id == 12).values(items_sha256=kept))
    command.downgrade(config, "0002")
    query = sa.text("SELECT items FROM tasks ORDER BY id").columns(sa.column("items", Json))
    with store.reading() as session:
        assert session.scalars(query).all() == [ITEMS, many, []], "JSONB writes 1e22 as a whole number"
    command.upgrade(config, "head")
    assert same(stored_items(store, tmp_path / "items"), expected | {"text-1": many})
    store.close()


def test_a_database_in_use_of_the_fourth_schema_keeps_all_that_is_in_it(database_url: str) -> None:
    """Upgraded from the schema that was given out last: every value of every table, and what is queued runs."""
    config = alembic_config(database_url)
    command.upgrade(config, "0004")
    store = Store(database_url)
    tables = insert_rows(store, _FOURTH)
    assert set(_FOURTH) == set(tables.tables) - {"alembic_version"}, "a row in each"
    before = contents(store, tables)
    with pytest.raises(SchemaVersionMismatch, match=r"version 0004, .*; start the evalsvc that made .*serve --migrate"):
        open_store(database_url, migrate=False)
    open_store(database_url, migrate=True).close()
    assert contents(store, tables) == before
    with store.transaction() as session:
        assert take(session, lambda checkpoint: Path("/spool")) is not None
    store.close()


def contents(store: Store, tables: sa.MetaData) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, in the columns of then."""
    with store.engine.connect() as connection:
        return {
            name: sorted(
                (dict(row._mapping) for row in connection.execute(sa.select(table))),
                key=lambda row: json.dumps(row, default=str, sort_keys=True),
            )
            for name, table in tables.tables.items()
            if name != "alembic_version"
        }


def test_a_checkpoint_from_elsewhere_survives_both_ways(database_url: str) -> None:
    config = alembic_config(database_url)
    command.upgrade(config, "head")
    store = Store(database_url)
    file = {"uri": "s3://bucket/a.pt", "path": "s3://bucket/a.pt", "size": 7, "mtime_ns": 0, "etag": "abc"}
    with store.transaction() as session:
        session.add(Run(name="a", checkpoints=[Checkpoint(step=0, variant="raw", **file)]))
    for step, revision in ((command.downgrade, "0004"), (command.upgrade, "head")):
        step(config, revision)
        with store.engine.connect() as connection:
            found = connection.execute(sa.text("SELECT uri, size, mtime_ns FROM checkpoints")).all()
        assert [tuple(row) for row in found] == [("s3://bucket/a.pt", 7, 0)]
    with store.reading() as session:
        assert session.scalars(sa.select(Checkpoint.etag)).all() == [None]
    store.close()


_TIME = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)

_FOURTH: dict[str, list[dict[str, Any]]] = {
    "runs": [
        {"id": 7, "name": "old", "plan": {"suites": [{"suite": "s", "every": 5}]}, "base": None, "created_at": _TIME},
        {"id": 9, "name": "other", "plan": None, "base": {"run": "old", "step": 0}, "created_at": _TIME},
    ],
    "suites": [{"name": "s", "content": {"tasks": [{"kind": "loss"}]}, "digest": "d" * 64, "updated_at": _TIME}],
    "protocols": [{"id": "p" * 16, "content": {"task": "loss", "limit": 1e22}}],
    "checkpoints": [
        {"id": index, "run_id": 7, "step": 10**12 * index, "variant": "raw", "uri": f"/é{index}.pt", "path": "/a"}
        | {"size": 2**40, "mtime_ns": 2**60, "sha256": None, "model": {"a": [1]}, "layout": None, "tokens_seen": None}
        | {"tags": {"lr": 0.1 + 0.2}, "spool": "none", "spool_state": None, "created_at": _TIME, "replaced_at": None}
        for index in (3, 4)
    ],
    "checkpoint_parents": [{"checkpoint_id": 4, "parent_id": 3}],
    "evaluations": [
        {"id": index, "checkpoint_id": 3, "suite": "s", "suite_digest": "d" * 64, "planned": True, "priority": 2}
        | {"state": state, "error": None, "created_at": _TIME, "started_at": _TIME, "finished_at": None}
        for index, state in ((5, "succeeded"), (6, "running"))
    ],
    "tasks": [
        {"id": index + 6, "evaluation_id": index, "index": 0, "kind": "loss", "name": "loss", "parameters": {"x": 1}}
        | {"state": state, "total": 8, "unit": "sequences", "metrics": [{"name": "loss/text", "value": "NaN"}]}
        | {"provenance": {"device": "cpu"}, "error": None, "items": b"\x00\xff", "items_sha256": None}
        for index, state in ((5, "succeeded"), (6, "running"))
    ],
    "shards": [
        {"id": index, "task_id": 12, "stage": stage, "index": 0, "state": state, "attempt": 1, "strikes": 1}
        | {"payload": {"units": 8}, "units": None, "output": None, "provenance": None, "error": None}
        for index, stage, state in ((21, "plan", "succeeded"), (22, "run", "queued"))
    ],
    "attempts": [{"shard_id": 21, "number": 1, "started_at": _TIME, "finished_at": _TIME, "outcome": "succeeded"}],
    "artifacts": [
        {"id": 31, "task_id": 11, "kind": "grid", "name": "g.png", "media_type": "image/png", "sha256": "a" * 64}
        | {"size": 2**33, "details": {"prompt": "a ⅔"}}
    ],
    "series": [
        {"id": 41, "run_id": 7, "metric": "loss/text", "variant": "raw", "protocol_id": "p" * 16}
        | {"unit": "nats/token", "direction": "lower", "baseline": 6.37}
    ],
    "metric_values": [
        {"series_id": 41, "step": step, "value": value, "kind": kind, "stderr": stderr, "n": 8, "evaluation_id": 5}
        for step, value, kind, stderr in ((3 * 10**12, 0.1 + 0.2, 0, 0.1), (4, None, 1, None))
    ],
}


def test_items_are_not_left_behind_on_the_way_down(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database does not know where its data folder is; a wrong one must not cost what is in its files."""
    config = alembic_config(database_url)
    command.upgrade(config, "0002")
    store = Store(database_url)
    insert_tasks(store, ITEMS)
    command.upgrade(config, "0004")
    with store.transaction() as session:
        session.execute(sa.update(Task).values(items=None, items_sha256="0" * 64))
    command.downgrade(config, "0004")
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(ItemsLost, match=r"elsewhere/items/00/0+ is missing or damaged; .* EVALSVC_DATA_DIR"):
        command.downgrade(config, "0002")
    assert store.schema_version() == "0004"
    store.close()


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
        with pytest.raises(
            SchemaVersionMismatch, match=rf"version 9999, this evalsvc needs {head}; a newer .*pip install"
        ):
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


@pytest.mark.parametrize(
    "url",
    [
        "postgres//me:hunter2@127.0.0.1/x",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://me@127.0.0.1:1/x?password=hunter2",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/x?nonsense=1",
        "postgresql+psycopg://me:hun%2Fter2@127.0.0.1:1/x",
        "nosuchdb://me:hunter2@127.0.0.1/x",
        "postgresql+psycopg://me:x@hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://me:x@y/hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://me:hunter2/x@y@127.0.0.1:1/x",
        "postgresql+psycopg://me:x@y:hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://me:hunter2?x@127.0.0.1:1/x",
        "postgresql+psycopg://me:x?hunter2@127.0.0.1:1/x",
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
