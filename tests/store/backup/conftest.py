"""A backup of a database with something of everything, which tests change and restore."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backup_files import Parts, read_parts
from filled_store import fill, rows_of
from migrated import migrated_store

from evalsvc.store.backup.writing import write_backup
from evalsvc.store.session import Store


@pytest.fixture(scope="session")
def good_backup(whole_databases: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup file, not to be changed."""
    folder = tmp_path_factory.mktemp("backed-up")
    store = migrated_store(folder / "evalsvc.db")
    written = write_backup(fill(store, folder), folder / "backup.tar")
    store.close()
    return written.path


@pytest.fixture
def parts(good_backup: Path) -> Parts:
    """The parts of the backup, to be changed."""
    return read_parts(good_backup)


@pytest.fixture
def empty_target(tmp_path: Path) -> Iterator[Store]:
    """A migrated and empty database in a data folder with nothing else."""
    folder = tmp_path / "restored"
    folder.mkdir()
    store = migrated_store(folder / "evalsvc.db")
    yield store
    store.close()


@pytest.fixture
def is_untouched(empty_target: Store, tmp_path: Path) -> Callable[[], bool]:
    """Tells whether nothing was restored."""
    folder = tmp_path / "restored"

    def look() -> bool:
        no_rows = not any(rows_of(empty_target).values())
        names = {path.name for path in folder.iterdir() if not path.name.startswith("evalsvc.db")}
        return no_rows and names == set()

    return look
