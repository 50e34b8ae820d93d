"""A migrated SQLite file for every test: migrating takes longer than most of them, so a process does it once."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

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
