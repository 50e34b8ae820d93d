"""Sessions of browsers: how long they last, how many there are, and how their cookies are read."""

from typing import Any

import pytest

from evalsvc.api.middleware import sessions
from evalsvc.api.middleware.sessions import Sessions, cookie_of, local_path, set_cookie
from evalsvc.store.tables import Token


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
    kept.end(second)
    assert kept.find(second) is None
    clock[0] = sessions.SECONDS - 1
    found = kept.find(first)
    assert found is not None
    assert found.token == "a" * 8
    clock[0] = sessions.SECONDS
    assert kept.find(first) is None
    kept.begin(token("b"))
    assert len(kept) == 1, "what has ended takes no memory"


def test_many_sessions_end_the_oldest_one_of_the_same_token() -> None:
    """A holder of one token cannot end the sessions of all others."""
    kept = Sessions()
    other = kept.begin(token("b"))
    first, *rest = (kept.begin(token("a")) for _ in range(sessions.SESSIONS_OF_TOKEN + 1))
    assert kept.find(first) is None
    assert all(kept.find(value) for value in (*rest, other))


def test_the_number_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS", 3)
    kept = Sessions()
    values = [kept.begin(token(str(number))) for number in range(5)]
    assert [kept.find(value) is not None for value in values] == [False, False, True, True, True]


def test_the_memory_holds_neither_cookies_nor_tokens() -> None:
    """What a dump of the memory's dictionary shows signs nobody in."""
    kept = Sessions()
    value = kept.begin(token("a"))
    assert value not in repr(vars(kept))


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


@pytest.mark.parametrize(
    "target",
    [
        *("//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "javascript:alert(1)", ""),
        *("evil.example", "/\t/evil.example", "/\r\nSet-Cookie: a=b", "/a\nb", "/\x00", "/é", "/a b", "/" + "a" * 5000),
        *(" /", "/a\\b", "/\x7f"),
    ],
)
def test_nothing_leads_to_another_address(target: str) -> None:
    assert local_path(target) == "/"


@pytest.mark.parametrize("target", ["/", "/runs/a%20b?step=3&with=c#d", "/compare?a=x%40%31&b=%2F%2Fevil.example"])
def test_paths_of_this_service_are_kept(target: str) -> None:
    assert local_path(target) == target
