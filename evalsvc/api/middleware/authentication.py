"""Authentication: the token behind a request, from the Authorization header or from the session of a browser."""

from __future__ import annotations

import asyncio
import html
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.routing import compile_path
from starlette.types import Scope

from evalsvc.access_tokens import hash_token
from evalsvc.api.middleware.browsers import check_browser, check_same_origin, is_loopback
from evalsvc.api.middleware.rates import Rates, client_key
from evalsvc.api.middleware.sessions import Session, Sessions, cookie_of, local_path
from evalsvc.config import Settings
from evalsvc.errors import RateLimited, Unauthorized
from evalsvc.log import note
from evalsvc.store.session import Store, database_unusable
from evalsvc.store.tables import Token
from evalsvc.store.tokens import all_tokens, note_use
from evalsvc.web.page import PAGES

log = logging.getLogger(__name__)

LIFETIME = 2.0
"""Seconds until the copy is renewed, which is the delay until a new token is accepted or a revoked token refused."""

PATIENCE, FIRST_PATIENCE = 2.0, 15.0
"""Seconds that a request waits for a newer copy before it uses the older one, if the database hangs; and for the first
copy, which is more than the timeout of a locked SQLite database."""

NOTE_EVERY = 60.0
"""Seconds between two records of a token's use."""


class KnownTokens:
    """A copy of the table of tokens, which dedicated threads read and write. While the database does not answer, the
    last copy stays valid, since no token can be revoked either."""

    def __init__(self) -> None:
        self._tokens: Mapping[str, Token] | None = None
        self._read_at = 0.0
        self._reader = ThreadPoolExecutor(1, "known-tokens")
        self._refresh: Future[Exception | None] | None = None
        self._writer = ThreadPoolExecutor(1, "token-uses")
        self._noted: dict[int, float] = {}
        self._begun = datetime.now(UTC), time.monotonic()

    def now(self) -> datetime:
        """Return the current time for the expiry of tokens, which does not go back when the clock is set back."""
        begun, ticks = self._begun
        return max(datetime.now(UTC), begun + timedelta(seconds=time.monotonic() - ticks))

    async def read(self, store: Store) -> Mapping[str, Token]:
        """Return all tokens by hash, including revoked and expired ones."""
        if self._tokens is None:
            # Concurrent requests wait for the same read.
            refresh = self._refresh if self._is_refreshing() else None
            waiting = asyncio.wrap_future(refresh or self._begin_refresh(store))
            await asyncio.wait({waiting}, timeout=FIRST_PATIENCE)
            if self._tokens is None:
                error = waiting.result() if waiting.done() else None
                raise database_unusable(store.url, error or TimeoutError(f"no answer within {FIRST_PATIENCE:g} s"))
        elif time.monotonic() - self._read_at > LIFETIME and not self._is_refreshing():
            # Only one request waits for the refresh, so a hanging database does not delay every request.
            await asyncio.wait({asyncio.wrap_future(self._begin_refresh(store))}, timeout=PATIENCE)
        return self._tokens

    def note_use(self, token: Token, store: Store) -> Future[None] | None:
        """Record the use of a token in another thread; return None if a use was recorded within the last minute."""
        if time.monotonic() - self._noted.get(token.id, -NOTE_EVERY) < NOTE_EVERY:
            return None
        self._noted[token.id] = time.monotonic()
        return self._writer.submit(_write_use, store, token, datetime.now(UTC))

    def _is_refreshing(self) -> bool:
        return self._refresh is not None and not self._refresh.done()

    def _begin_refresh(self, store: Store) -> Future[Exception | None]:
        self._refresh = self._reader.submit(self._read_table, store)
        return self._refresh

    def _read_table(self, store: Store) -> Exception | None:
        asked = time.monotonic()
        try:
            with store.reading() as session:
                self._tokens = {token.sha256: token for token in all_tokens(session)}
        except Exception as error:  # the next read may succeed
            log.warning("the tokens could not be read, so the last copy stays valid: %s", type(error).__name__)
            return error
        finally:
            # After a failure too, the next read is after LIFETIME and not at the next request.
            self._read_at = asked
        return None


def _write_use(store: Store, token: Token, when: datetime) -> None:
    try:
        with store.transaction() as session:
            note_use(session, token.id, when)
    except SQLAlchemyError as error:
        log.warning("the use of token %s could not be recorded: %s", token.name, type(error).__name__)


def find_token(tokens: Mapping[str, Token], authorization: str | None, now: datetime) -> Token:
    if authorization is None:
        raise Unauthorized(
            "this service needs a token; send `Authorization: Bearer TOKEN`, or set EVALSVC_TOKEN for "
            "the client and the command line; the operator creates a token: evalsvc tokens create NAME"
        )
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer":
        # The message does not quote the header, which may contain the token.
        raise Unauthorized("the Authorization header holds no bearer token; send `Authorization: Bearer TOKEN`")
    return require_current(tokens.get(hash_token(text.strip())), now)


def require_current(token: Token | None, now: datetime) -> Token:
    """Return a token that is known, not revoked and not expired."""
    if token is None:
        raise Unauthorized(
            "this service does not know the token; check that the token was copied whole and is for this address, or "
            "ask the operator for a token: evalsvc tokens create NAME"
        )
    # The client has a token that was valid once, and may learn why the token is refused.
    if token.revoked_at is not None:
        raise Unauthorized(f"the token {token.name!r} was revoked; ask the operator for another token")
    if token.expires_at is not None and token.expires_at <= now:
        raise Unauthorized(
            f"the token {token.name!r} expired on {token.expires_at:%Y-%m-%d}; ask the operator for another token"
        )
    return token


SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"

READS = ("GET", "HEAD")

FAILURES, FAILURES_EVERY = 10, 6.0
"""Wrong tokens that an address may send in a burst, and seconds until the address may send another one."""

_PAGES = [compile_path(path)[0] for path in (*PAGES, "/panels/{file}.html")]

_BOUNCE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Caller:
    token: Token | None
    """Token of the request; None: the service is open to the request."""
    session: Session | None = None
    """Session of the browser; None if the request has no session, or has an Authorization header."""


class Authentication:
    def __init__(self, settings: Settings, insecure: bool = False) -> None:
        self.tokens = KnownTokens()
        self.sessions = Sessions()
        self.failures = Rates(1 / FAILURES_EVERY, FAILURES)
        self._settings = settings
        self._may_be_open = is_loopback(settings.host) or insecure

    async def caller(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        store = scope["app"].state.state.store
        tokens = await self.tokens.read(store)
        is_open = scope["app"].state.is_open = not tokens and self._may_be_open
        if is_open:
            check_browser(scope["method"], headers, self._settings)
            return Caller(None)
        session = None if "authorization" in headers else self._session(scope)
        if session is None:
            token = self._find(tokens, headers.get("authorization"), client_key(scope))
        else:
            token = require_current(tokens.get(session.token), self.tokens.now())
        note(token=token.name)
        if not self._settings.read_only:
            self.tokens.note_use(token, store)
        return Caller(token, session)

    def _session(self, scope: Scope) -> Session | None:
        """Return the session of a request that a session may authenticate: a read, or a form of the dashboard."""
        headers = Headers(scope=scope)
        session = self.sessions.find(cookie_of(scope))
        if session is None or scope["method"] in READS:
            is_ours = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
            return session if is_ours or headers.get("sec-fetch-mode") == "navigate" else None
        if scope["path"].startswith("/v1/"):
            return None
        check_same_origin(headers)
        return session

    async def sign_in(self, scope: Scope, client: str, shown: str) -> str:
        """Begin a session with the token `shown`, and end the browser's last session; return the new cookie's value."""
        tokens = await self.tokens.read(scope["app"].state.state.store)
        token = self._find(tokens, f"Bearer {shown}", client)
        self.sessions.end(cookie_of(scope))
        return self.sessions.begin(token)

    def _find(self, tokens: Mapping[str, Token], header: str | None, client: str) -> Token:
        try:
            return find_token(tokens, header, self.tokens.now())
        except Unauthorized:
            if header is not None and (wait := self.failures.take(client)):
                error = RateLimited(f"too many wrong tokens came from this address; try again in {wait} s")
                error.retry_after = wait
                raise error from None
            raise


def sign_in_page(scope: Scope) -> Response | None:
    """Return the answer that leads a browser from a page to the sign-in; None if the request is not for a page.

    A browser sends a cookie with SameSite=Strict only where a page of this service leads. A link from another site
    therefore gets a page that leads to the same address once more, now with the cookie.
    """
    headers = Headers(scope=scope)
    is_page = any(pattern.match(scope["path"]) for pattern in _PAGES)
    if scope["method"] not in READS or "authorization" in headers or not is_page:
        return None
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    target = local_path((path + (b"?" + query if query else b"")).decode("latin-1"))
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': target})}", 303, headers=_BOUNCE_HEADERS)
    shown = html.escape(target)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>evalsvc</title>'
        f'<meta http-equiv="refresh" content="0; url={shown}"></head>'
        f'<body><p><a href="{shown}">Go on to the page</a></p></body></html>\n'
    )
    return Response(page, media_type="text/html", headers=_BOUNCE_HEADERS)
