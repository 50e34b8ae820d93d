"""One coordinator per database: who gets the lock, and what a process that lost it can still do."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from evalsvc.errors import DatabaseInUse, DatabaseUnusable
from evalsvc.store.lock import CoordinatorLock
from evalsvc.store.session import Store
from evalsvc.store.tables import Run

Locks = tuple[CoordinatorLock, CoordinatorLock]


@pytest.fixture
def locks(store: Store) -> Iterator[Locks]:
    locks = CoordinatorLock(store.url), CoordinatorLock(store.url)
    yield locks
    for lock in locks:
        lock.release()


def test_a_second_one_is_refused_until_the_first_has_gone(store: Store, locks: Locks) -> None:
    """Two coordinators on one database ran every shard twice, each queueing again what the other one had begun."""
    first, second = locks
    first.acquire()
    first.begin_term(store)
    first.acquire()
    assert first.is_held()
    with pytest.raises(DatabaseInUse, match=rf"is served by another evalsvc \(process {os.getpid()} on .*--read-only"):
        second.acquire()
    assert not second.is_held()
    first.release()
    assert not first.is_held()
    second.acquire(patience=10)  # the server ends a session some time after its connection
    assert second.is_held()


def test_who_lost_the_lock_stores_nothing(store: Store, locks: Locks) -> None:
    """It may find out only after the fact: its connection was cut, or the file of the lock was removed."""
    first, second = locks
    first.acquire()
    first.begin_term(store)
    fenced = first.fence(store)
    with fenced.transaction() as session:
        session.add(Run(name="before"))
    cut_off(store)
    second.acquire(patience=10)
    with fenced.transaction() as session:
        session.add(Run(name="nobody else has begun"))
    second.begin_term(store)
    with (
        pytest.raises(DatabaseInUse, match="this process lost the lock of the database"),
        fenced.transaction() as session,
    ):
        session.add(Run(name="too late"))
    with store.reading() as session:
        assert set(session.scalars(sa.select(Run.name))) == {"before", "nobody else has begun"}
    assert not first.has_term()
    assert not first.is_held()
    with pytest.raises(DatabaseInUse):
        first.acquire()


def cut_off(store: Store) -> None:
    if store.engine.dialect.name == "sqlite":
        (lock,) = Path(str(store.engine.url.database)).parent.glob("*.lock")
        lock.unlink()
        return
    with store.engine.begin() as connection:
        found = connection.execute(
            sa.text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        )
        assert found.all() == [(True,)]


def test_a_lock_is_had_again_where_nobody_took_it(store: Store, locks: Locks) -> None:
    """After a restart of PostgreSQL the service must go on by itself."""
    lock, _ = locks
    lock.acquire()
    lock.begin_term(store)
    cut_off(store)
    assert not lock.is_held()
    assert not lock.has_term()
    with pytest.raises(DatabaseInUse), lock.fence(store).transaction():
        pass
    lock.acquire()
    lock.begin_term(store)
    with lock.fence(store).transaction() as session:
        session.add(Run(name="again"))


def test_a_database_that_does_not_answer_is_no_lock() -> None:
    lock = CoordinatorLock("postgresql+psycopg://user:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnusable, match=r"127\.0\.0\.1:1/x cannot be used") as error:
        lock.acquire()
    assert "secret" not in error.value.message
    assert not lock.is_held()
