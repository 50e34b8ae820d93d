"""A migrated SQLite file for every test, as migrating takes longer than most of them; and a newer schema."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import delete, text

from evalsvc.store import session
from evalsvc.store.session import Store, open_store
from evalsvc.store.tables import Base


def migrated_store(file: Path) -> Store:
    copy_migrated(file)
    return open_store(f"sqlite:///{file}", migrate=False)


def empty(store: Store) -> None:
    with store.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
        session.execute(text("DELETE FROM sqlite_sequence"))


def copy_migrated(file: Path) -> None:
    shutil.copy(_template(), file)


@functools.cache
def _template() -> Path:
    path = Path(tempfile.mkdtemp(prefix="evalsvc-test-")) / "evalsvc.db"
    atexit.register(shutil.rmtree, path.parent)
    open_store(f"sqlite:///{path}", migrate=False).close()
    return path


_ADDED = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0101", "0100"


def upgrade():
    op.create_table("added", sa.Column("id", sa.Integer(), primary_key=True))
"""


def add_migration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program have a migration more, with which databases made before are of an older version."""
    shutil.copytree(session._migrations(), folder)
    (folder / "versions" / "0101_added.py").write_text(_ADDED)
    monkeypatch.setattr(session, "_migrations", lambda: folder)
    monkeypatch.setattr(session, "_scripts", functools.cache(session._scripts.__wrapped__))
