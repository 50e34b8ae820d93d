"""Tokens, sessions and rates: how old the copy of the tokens may be, how long sessions last, how often one may ask."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from evalsvc.access_tokens import hash_token
from evalsvc.api.middleware import authentication, rates, sessions
from evalsvc.api.middleware.authentication import LIFETIME, KnownTokens, find_token
from evalsvc.api.middleware.rates import Rates, address_key
from evalsvc.api.middleware.sessions import Sessions, cookie_of, local_path, set_cookie
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
    assert LIFETIME <= 5, "docs/how-to/operate.md says seconds"


async def use(known: KnownTokens, store: Store) -> None:
    (token,) = (await known.read(store)).values()
    if (written := known.note_use(token, store)) is not None:
        await asyncio.wrap_future(written)


def test_uses_are_written_at_most_once_a_minute_and_disturb_nobody(
    store: Store, later: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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

    def locked(session: object, token: int, when: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    monkeypatch.setattr(authentication, "note_use", locked)
    asyncio.run(use(KnownTokens(), store))
    assert "the use of token first could not be recorded: OperationalError" in caplog.text


def test_a_database_that_hangs_holds_up_nobody_for_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownTokens()
    names(known, store)
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)
    monkeypatch.setattr(authentication, "PATIENCE", 0.05)
    monkeypatch.setattr(authentication, "all_tokens", lambda session: time.sleep(0.5))

    async def read() -> float:
        begun = time.monotonic()
        await known.read(store)
        taken = time.monotonic() - begun
        await asyncio.sleep(0.6)
        return taken

    assert asyncio.run(read()) < 0.4


def test_no_crowd_keeps_a_revoked_token(store: Store, later: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_expired_token_stays_so_by_any_clock(monkeypatch: pytest.MonkeyPatch, later: list[float]) -> None:
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
    for seconds, moved in ((3_700, timedelta(days=-1)), (-3_700, timedelta(days=1, hours=2))):
        later[0] += seconds
        clock[0] += moved
        with pytest.raises(Unauthorized, match="expired on 2026-05-04"):
            find_token(tokens, f"Bearer {token}", known.now())


def token(name: str) -> Token:
    return Token(name=name, scope="read", sha256=name * 8)


def scope(cookie: str = "", scheme: str = "http", host: str = "evalsvc:8321", **headers: str) -> dict[str, Any]:
    pairs = {"host": host, "cookie": cookie, **headers}
    return {
        "type": "http",
        "scheme": scheme,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs.items() if value],
    }


def test_a_session_ends_after_its_lifetime_and_by_signing_out() -> None:
    clock = [0.0]
    kept = Sessions(lambda: clock[0])
    first, second = kept.begin(token("a")), kept.begin(token("a"))
    assert first != second
    assert first not in repr(vars(kept)), "what a dump of the memory shows signs nobody in"
    kept.end(second)
    assert kept.find(second) is None
    clock[0] = sessions.SECONDS - 1
    found = kept.find(first)
    assert found is not None
    assert found.token == "a" * 8
    clock[0] = sessions.SECONDS
    assert kept.find(first) is None
    kept.begin(token("b"))
    assert len(kept._sessions) == 1, "what has ended takes no memory"


def test_many_sessions_end_the_oldest_one_first_of_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder of one token cannot end the sessions of all others."""
    kept = Sessions()
    other = kept.begin(token("b"))
    first, *rest = (kept.begin(token("a")) for _ in range(sessions.SESSIONS_OF_TOKEN + 1))
    assert kept.find(first) is None
    assert all(kept.find(value) for value in (*rest, other))
    monkeypatch.setattr(sessions, "SESSIONS", 3)
    kept = Sessions()
    values = [kept.begin(token(str(number))) for number in range(5)]
    assert [kept.find(value) is not None for value in values] == [False, False, True, True, True]


def test_cookies_are_read_by_name_and_port() -> None:
    """Services on other ports of a host share the host's cookies."""
    assert cookie_of(scope("a=1; evalsvc_8321=x; evalsvc_8322=y")) == "x"
    assert cookie_of(scope("evalsvc=z; evalsvc_8321=x", host="eval.example")) == "z"
    assert cookie_of(scope("", host="eval.example")) is None
    assert cookie_of(scope("evalsvc_8321=x; evalsvc_8321=y")) is None, "one of two is another's"
    assert cookie_of(scope("evalsvc=x", "https", "eval.example")) is None, "by https only the protected name counts"
    assert cookie_of(scope("evalsvc=y; __Host-evalsvc=x", "https", "eval.example")) == "x"


def test_a_cookie_has_every_protection() -> None:
    plain = set_cookie(scope(), "x")
    assert plain == f"evalsvc_8321=x; Path=/; Max-Age={sessions.SECONDS}; HttpOnly; SameSite=Strict"
    secure = set_cookie(scope(scheme="https", host="eval.example"), "x")
    assert secure.startswith("__Host-evalsvc=x; Path=/;")
    assert secure.endswith("; HttpOnly; SameSite=Strict; Secure")
    behind_a_proxy = set_cookie(scope(host="eval.example", origin="https://eval.example"), "x")
    assert behind_a_proxy == secure
    assert "Max-Age=0" in set_cookie(scope(), "")


def test_nothing_leads_to_another_address() -> None:
    for target in (
        *("//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "javascript:alert(1)", ""),
        *("evil.example", "/\t/evil.example", "/\r\nSet-Cookie: a=b", "/a\nb", "/\x00", "/é", "/a b", "/" + "a" * 5000),
        *(" /", "/a\\b", "/\x7f"),
    ):
        assert local_path(target) == "/", target
    for target in ("/", "/runs/a%20b?step=3&with=c#d", "/compare?a=x%40%31&b=%2F%2Fevil.example"):
        assert local_path(target) == target


def test_a_burst_and_then_the_rate() -> None:
    now = [0.0]
    buckets = Rates(2.0, 5, lambda: now[0])
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]
    now[0] = 1000.0
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 1], "a bucket holds no more than a burst"
    assert buckets.take("b") == 0, "others are not concerned"
    no_limit = Rates(0, 0)
    assert not any(no_limit.take("a") for _ in range(1000))
    now, buckets = [0.0], Rates(0.3, 1, lambda: now[0])
    assert buckets.take("a") == 0
    for _ in range(20):  # a client that waits as it was told must not be told to wait again
        wait = buckets.take("a")
        assert wait > 0
        now[0] += wait
        assert buckets.take("a") == 0


def test_there_are_never_more_buckets_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an attacker of many addresses would fill the memory."""
    monkeypatch.setattr(rates, "KEPT", 3)
    buckets = Rates(1.0, 1, lambda: 0.0)
    assert [buckets.take(key) for key in "abc"] == [0, 0, 0]
    assert buckets.take("a") == 1
    assert buckets.take("d") == 0
    assert buckets.take("a") == 1, "it was used after b, which went"
    assert buckets.take("b") == 0
    assert len(buckets._buckets) == 3
    hosts = ("10.0.0.1", "2001:db8::1", "testclient")
    assert [address_key(host) for host in hosts] == ["10.0.0.1", "2001:db8::/64", "testclient"]
