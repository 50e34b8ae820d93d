"""A database of each kind that evalsvc supports, new for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from migrated import migrated_store

from evalsvc.store.session import Store, open_store


@pytest.fixture(params=["sqlite", pytest.param("migrated_postgresql", id="postgresql")])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A migrated and empty store."""
    if request.param == "sqlite":
        store = migrated_store(tmp_path / "evalsvc.db")
    else:
        store = open_store(request.getfixturevalue(request.param), migrate=False)
    yield store
    store.close()
