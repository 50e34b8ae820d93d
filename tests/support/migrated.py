"""A migrated SQLite file for every test, as migrating takes longer than most of them; and rows of older schemas."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from evalsvc.store.session import Store, open_store


def migrated_store(file: Path) -> Store:
    """The store in an SQLite file, which is new, migrated and empty."""
    copy_migrated(file)
    return open_store(f"sqlite:///{file}", migrate=False)


def copy_migrated(file: Path) -> None:
    shutil.copy(_template(), file)


@functools.cache
def _template() -> Path:
    path = Path(tempfile.mkdtemp(prefix="evalsvc-test-")) / "evalsvc.db"
    atexit.register(shutil.rmtree, path.parent)
    open_store(f"sqlite:///{path}", migrate=False).close()
    return path


_TIME = datetime(2026, 1, 1, tzinfo=UTC)

FIRST_ROWS: dict[str, list[dict[str, Any]]] = {
    "runs": [{"id": 7, "name": "old", "plan": {"suites": []}, "created_at": _TIME}],
    "checkpoints": [
        {"id": 3, "run_id": 7, "step": 0, "variant": "raw", "uri": "/a.pt", "path": "/a.pt", "size": 1, "mtime_ns": 1}
        | {"tags": {}, "spool": "none", "created_at": _TIME}
    ],
    "evaluations": [
        {"id": 5, "checkpoint_id": 3, "suite": "s", "suite_digest": "0", "planned": False, "priority": 0}
        | {"state": "failed", "created_at": _TIME}
    ],
}
"""A run, a checkpoint and an evaluation as the first schema has them."""


def insert_rows(store: Store, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> sa.MetaData:
    """Insert rows into the tables that the database has, which may be those of an older schema; the tables."""
    tables = sa.MetaData()
    tables.reflect(store.engine)
    with store.engine.execution_options(writes=True).begin() as connection:
        for name, records in rows.items():
            for record in records:
                connection.execute(tables.tables[name].insert().values(record))
    return tables
