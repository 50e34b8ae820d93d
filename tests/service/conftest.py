from collections.abc import Iterator
from pathlib import Path

import pytest
from migrated import migrated_store

from evalsvc.store.session import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = migrated_store(tmp_path / "evalsvc.db")
    (tmp_path / "data").mkdir()
    yield store
    store.close()
