"""The copy of the table of tokens: how old it may be, and what a database that is away does to it."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from anyio import to_thread
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from evalsvc.access_tokens import hash_token
from evalsvc.api.middleware import authentication
from evalsvc.api.middleware.authentication import LIFETIME, KnownTokens, find_token
from evalsvc.errors import DatabaseUnusable, Unauthorized
from evalsvc.store.session import Store, open_store
from evalsvc.store.tables import Token
from evalsvc.store.tokens import all_tokens, create_token, revoke_token


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path / 'evalsvc.db'}", migrate=False)
    with store.transaction() as session:
        create_token(session, "first", "read")
    yield store
    store.close()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that have gone by."""
    passed = [1000.0]
    monkeypatch.setattr(authentication.time, "monotonic", lambda: passed[0])
    yield passed
    monkeypatch.undo()


def names(known: KnownTokens, store: Store) -> list[tuple[str, bool]]:
    tokens = asyncio.run(known.read(store))
    return [(token.name, token.revoked_at is not None) for token in tokens.values()]


def test_changes_are_known_within_the_lifetime(store: Store, later: list[float]) -> None:
    known = KnownTokens()
    assert names(known, store) == [("first", False)]
    with store.transaction() as session:
        revoke_token(session, "first")
        create_token(session, "second", "read")
    later[0] += LIFETIME / 2
    assert names(known, store) == [("first", False)], "read once per lifetime, not once per request"
    later[0] += LIFETIME
    assert names(known, store) == [("first", True), ("second", False)]
    assert LIFETIME <= 5, "docs/how-to/tokens-and-tls.md says seconds"


async def use(known: KnownTokens, store: Store) -> None:
    (token,) = (await known.read(store)).values()
    if (written := known.note_use(token, store)) is not None:
        await asyncio.wrap_future(written)


def test_a_use_that_cannot_be_written_disturbs_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(session: object, token: int, when: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    monkeypatch.setattr(authentication, "note_use", locked)
    asyncio.run(use(KnownTokens(), store))
    assert "the use of token first could not be recorded: OperationalError" in caplog.text


def test_uses_are_written_at_most_once_a_minute(store: Store, later: list[float]) -> None:
    """Else every request would be a write."""
    known, written = KnownTokens(), []
    for seconds in range(0, 150, 3):
        later[0] = 1000.0 + seconds
        asyncio.run(use(known, store))
        with store.reading() as session:
            (row,) = all_tokens(session)
            written.append(row.last_used_at)
    assert None not in written
    assert len(set(written)) == 3, "at 0, 60 and 120 seconds"


def test_a_database_that_hangs_holds_up_nobody_for_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownTokens()
    names(known, store)
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)
    monkeypatch.setattr(authentication, "PATIENCE", 0.05)
    monkeypatch.setattr(authentication, "all_tokens", lambda session: time.sleep(0.5))

    async def read() -> float:
        begun = time.monotonic()
        await known.read(store)
        return time.monotonic() - begun

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(read()) < 0.4
    loop.run_until_complete(asyncio.sleep(0.6))
    loop.close()


def test_requests_that_take_every_thread_do_not_keep_a_revoked_token_alive(
    store: Store, later: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once no thread was free for two seconds, the tokens were never read again: a revoked one let in until a restart,
    a new one did not, and an open service stayed open."""
    known = KnownTokens()
    names(known, store)
    with store.transaction() as session:
        revoke_token(session, "first")
    later[0] += 2 * LIFETIME
    monkeypatch.setattr(authentication, "PATIENCE", 1.0)

    async def read_in_a_crowd() -> list[bool]:
        threads = to_thread.current_default_thread_limiter()
        crowd = [object() for _ in range(int(threads.total_tokens))]
        for request in crowd:
            threads.acquire_on_behalf_of_nowait(request)
        try:
            return [token.revoked_at is not None for token in (await known.read(store)).values()]
        finally:
            for request in crowd:
                threads.release_on_behalf_of(request)

    assert asyncio.run(read_in_a_crowd()) == [True]
    with store.transaction() as session:
        create_token(session, "second", "read")
    later[0] += 2 * LIFETIME
    assert names(known, store) == [("first", True), ("second", False)]


@pytest.mark.parametrize(
    "error", [OperationalError("SELECT", {}, Exception("gone")), NoConnection("QueuePool limit"), MemoryError()]
)
def test_the_last_copy_holds_after_every_failure_until_the_tokens_are_read_again(
    store: Store, later: list[float], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    known, asked = KnownTokens(), []
    names(known, store)

    def fail(session: object) -> list[object]:
        asked.append(1)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(authentication, "all_tokens", fail)
        later[0] += 2 * LIFETIME
        assert names(known, store) == names(known, store) == [("first", False)]
        assert asked == [1], "a database that is away is not asked by every request"
        with pytest.raises(DatabaseUnusable):
            names(KnownTokens(), store)
    with store.transaction() as session:
        revoke_token(session, "first")
    later[0] += 2 * LIFETIME
    assert names(known, store) == [("first", True)]


def test_a_token_that_has_expired_does_not_come_back_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch, later: list[float]
) -> None:
    """Whoever may set the clock, or a machine that loses it, would open the service to old tokens."""
    clock = [datetime(2026, 5, 4, 12, tzinfo=UTC)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return clock[0]

    monkeypatch.setattr(authentication, "datetime", Clock)
    known, token = KnownTokens(), "evalsvc_" + "x" * 43
    expires = clock[0] + timedelta(hours=1)
    tokens = {hash_token(token): Token(id=1, name="ci", scope="read", expires_at=expires)}
    assert find_token(tokens, f"Bearer {token}", known.now()).name == "ci"
    later[0] += 3_700
    clock[0] -= timedelta(days=1)
    with pytest.raises(Unauthorized, match="expired on 2026-05-04"):
        find_token(tokens, f"Bearer {token}", known.now())
    later[0] -= 3_700
    clock[0] += timedelta(days=1, hours=2)
    with pytest.raises(Unauthorized, match="expired on 2026-05-04"):
        find_token(tokens, f"Bearer {token}", known.now())
