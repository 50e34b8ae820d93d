"""Authentication: the token behind a request, from the Authorization header or from the session of a browser."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.routing import compile_path
from starlette.types import Scope

from evalsvc.api.middleware.browsers import check_browser, check_same_origin, is_loopback
from evalsvc.api.middleware.known_tokens import KnownTokens, find_token, require_current
from evalsvc.api.middleware.rates import Rates, client_key
from evalsvc.api.middleware.sessions import Session, Sessions, cookie_of, local_path
from evalsvc.config import Settings
from evalsvc.errors import RateLimited, Unauthorized
from evalsvc.log import note
from evalsvc.store.tables import Token
from evalsvc.web.page import PAGES

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"

READS = ("GET", "HEAD")

FAILURES, FAILURES_EVERY = 10, 6.0
"""Wrong tokens that an address may send in a burst, and seconds until the address may send another one."""

_PAGES = [compile_path(path)[0] for path in (*PAGES, "/panels/{file}.html")]

_BOUNCE_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    token: Token | None
    """Token of the request; None: the service is open to the request."""
    session: Session | None = None
    """Session of the browser; None if the request has no session, or has an Authorization header."""


class Authentication:
    """The tokens, sessions and failed attempts of a service."""

    def __init__(self, settings: Settings, insecure: bool = False) -> None:
        """`insecure`: admit every client without a token while no token exists."""
        self.tokens = KnownTokens()
        self.sessions = Sessions()
        self.failures = Rates(1 / FAILURES_EVERY, FAILURES)
        self._settings = settings
        self._may_be_open = is_loopback(settings.host) or insecure

    async def caller(self, scope: Scope) -> Caller:
        """Return who sends a request."""
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
        """Begin a session with a token, and end the one that the browser had; return the value of the new cookie.

        Args:
            scope: the request.
            client: key of the address that the request comes from.
            shown: what was typed as the token.
        """
        tokens = await self.tokens.read(scope["app"].state.state.store)
        token = self._find(tokens, f"Bearer {shown}", client)
        self.sessions.end(cookie_of(scope))
        return self.sessions.begin(token)

    def _find(self, tokens: Mapping[str, Token], header: str | None, client: str) -> Token:
        """Return the token in a header. A wrong one counts, whatever the route."""
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
    target = local_path(_address(scope))
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return Response(_bounce(target), media_type="text/html", headers=_private(_BOUNCE_POLICY))
    return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': target})}", 303, headers=_private(_BOUNCE_POLICY))


def _address(scope: Scope) -> str:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")


def _bounce(target: str) -> str:
    shown = html.escape(target)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>evalsvc</title>'
        f'<meta http-equiv="refresh" content="0; url={shown}"></head>'
        f'<body><p><a href="{shown}">Go on to the page</a></p></body></html>\n'
    )


def _private(policy: str) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Content-Security-Policy": policy}
