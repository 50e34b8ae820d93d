"""Tokens in the database."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from queue_steps import ask

from evalsvc.access_tokens import hash_token
from evalsvc.errors import Conflict, InvalidRequest, UnknownName
from evalsvc.store.session import Store
from evalsvc.store.tables import Token
from evalsvc.store.tokens import all_tokens, create_token, has_tokens, note_use, revoke_token


def test_only_the_hash_is_kept(store: Store) -> None:
    """Whoever reads the database, or a backup of it, must not get in by what is there."""
    with store.transaction() as session:
        token = create_token(session, "trainer", "submit", 30)
    with store.engine.connect() as connection:
        (row,) = connection.execute(sa.text("SELECT * FROM tokens")).mappings().all()
    assert row["sha256"] == hash_token(token)
    assert token not in str(dict(row))
    (kept,) = ask(store, all_tokens)
    assert (kept.name, kept.scope, kept.last_used_at, kept.revoked_at) == ("trainer", "submit", None, None)
    assert kept.expires_at is not None
    assert abs(kept.expires_at - kept.created_at - timedelta(days=30)) < timedelta(seconds=5)


def test_a_revoked_name_is_free_and_its_row_stays(store: Store) -> None:
    """A service whose last token is revoked would else be open again to everyone on the machine."""
    with store.transaction() as session:
        assert not has_tokens(session)
        first = create_token(session, "ci", "read")
        with pytest.raises(Conflict, match=r"named 'ci' exists; revoke that token first \(evalsvc tokens revoke ci\)"):
            create_token(session, "ci", "read")
        revoke_token(session, "ci")
    with store.transaction() as session:
        assert has_tokens(session)
        assert create_token(session, "ci", "admin") != first
        assert [token.revoked_at is None for token in all_tokens(session)] == [False, True]


def test_two_at_once_do_not_get_one_name(store: Store) -> None:
    """The check before is no protection against a command that runs at the same time; the index is."""
    with store.transaction() as session:
        create_token(session, "ci", "read")

    def insert() -> None:
        with store.transaction() as session:
            session.add(Token(name="ci", scope="admin", sha256="0" * 64))

    with pytest.raises(sa.exc.IntegrityError):
        insert()


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda session: create_token(session, "my ci", "read"), InvalidRequest, "'my ci' is not a name"),
        (lambda session: create_token(session, "ci", "read", 0), InvalidRequest, "--days 0: give a number above 0"),
        (lambda session: create_token(session, "ci", "read", 1e9), InvalidRequest, "--days 1e"),
        (lambda session: revoke_token(session, "trainr"), UnknownName, "did you mean 'trainer'"),
    ],
)
def test_refused(store: Store, act: Callable[[sa.orm.Session], object], error: type[Exception], words: str) -> None:
    with store.transaction() as session:
        create_token(session, "trainer", "read")
        with pytest.raises(error, match=words):
            act(session)


def test_uses_are_noted(store: Store) -> None:
    with store.transaction() as session:
        create_token(session, "ci", "read")
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with store.transaction() as session:
        note_use(session, 1, when)
        note_use(session, 99, when)
    with store.reading() as session:
        assert [token.last_used_at for token in all_tokens(session)] == [when]
