"""Sessions: browsers that signed in with a token, and that no `web page` of another site can use.

A session's cookie is 256 random bits, which say nothing about the token. Sessions are kept in the memory of this
process, by the SHA-256 of their cookies: a restart ends all sessions, and so does nothing that reads the database.
A session ends after `SECONDS`, by signing out, and as soon as its token is revoked or expires.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from evalsvc.store.tables import Token

SECONDS = 12 * 3600
"""Lifetime of a session."""

SESSIONS, SESSIONS_OF_TOKEN = 1_000, 20
"""The most sessions, in total and of one token. One more session ends the oldest one."""

_VALUE = re.compile(r"[A-Za-z0-9_-]{43}")

_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]{0,4000}")
"""A path with a query on this service: visible ASCII without backslashes, which browsers take for slashes."""


@dataclass(frozen=True)
class Session:
    token: str
    """Hash of the token."""
    form_key: str
    """Random text that the forms of this session's pages carry. Another site's page cannot know it."""
    ends: float
    """Time at which the session ends, by the clock of `Sessions`."""


class Sessions:
    """All sessions of this process. Call the methods in the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, Session] = {}

    def begin(self, token: Token) -> str:
        """Begin a session with a token; return the value of its cookie."""
        now = self._clock()
        self._sessions = {key: session for key, session in self._sessions.items() if session.ends > now}
        own = [key for key, session in self._sessions.items() if session.token == token.sha256]
        if len(own) >= SESSIONS_OF_TOKEN:
            del self._sessions[own[0]]
        elif len(self._sessions) >= SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        value = secrets.token_urlsafe(32)
        self._sessions[_key(value)] = Session(token.sha256, secrets.token_urlsafe(32), now + SECONDS)
        return value

    def find(self, value: str | None) -> Session | None:
        if value is None or not _VALUE.fullmatch(value):
            return None
        session = self._sessions.get(_key(value))
        return session if session is not None and session.ends > self._clock() else None

    def end(self, value: str | None) -> None:
        if value is not None:
            self._sessions.pop(_key(value), None)


def _key(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def cookie_of(scope: Scope) -> str | None:
    """Return the value of a request's session cookie; None if there is no such cookie, or more than one.

    Another host of the same domain can set a second cookie with the same name. Under https the prefix `__Host-` keeps
    other hosts from that.
    """
    name = _cookie_name(scope)
    names = {f"__Host-{name}"} if scope.get("scheme") == "https" else {f"__Host-{name}", name}
    values = [
        value.strip()
        for line in Headers(scope=scope).getlist("cookie")
        for key, _, value in (part.partition("=") for part in line.split(";"))
        if key.strip() in names
    ]
    return values[0] if len(values) == 1 else None


def set_cookie(scope: Scope, value: str) -> str:
    """Return the header `Set-Cookie` that begins a session in the browser, or ends it if the value is empty."""
    name, seconds = _cookie_name(scope), SECONDS if value else 0
    attributes = f"Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict"
    # A proxy that is not trusted hides that the browser speaks https, but not the origin of a form.
    if scope.get("scheme") == "https" or Headers(scope=scope).get("origin", "").startswith("https://"):
        return f"__Host-{name}={value}; {attributes}; Secure"
    return f"{name}={value}; {attributes}"


def _cookie_name(scope: Scope) -> str:
    """Return the name of the cookie, with the port: services on other ports of a host share the host's cookies."""
    port = Headers(scope=scope).get("host", "").rpartition(":")[2]
    return f"evalsvc_{port}" if re.fullmatch(r"[0-9]{1,5}", port) else "evalsvc"


def local_path(text: str) -> str:
    """Return a path on this service, with its query; `/` for anything that leads to another address."""
    return text if _LOCAL.fullmatch(text) else "/"
