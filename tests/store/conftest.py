"""A migrated store on each database that evalsvc supports, empty for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from migrated import migrated_store

from evalsvc.store.session import Store, open_store


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'evalsvc.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    url = sa.make_url(database_url)
    file = url.database if url.get_backend_name() == "sqlite" else None
    store = migrated_store(Path(file)) if file else open_store(database_url, migrate=False)
    yield store
    store.close()
