"""Access control, against a `stranger` and a `reader`: the scope of each route, and the check of each token.

A service is open until the first token is created, if only this machine can reach its address. From then on, every
request needs a token or the session of a browser that signed in with a token, except for open routes. With the setting
`open_reads`, reads need neither.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from evalsvc.access_tokens import TokenScope, includes
from evalsvc.api.errors import PROBLEM_CONTENT, STATUS, problem, problem_of
from evalsvc.api.middleware.authentication import Authentication, Caller, sign_in_page
from evalsvc.api.middleware.browsers import check_browser, is_loopback
from evalsvc.api.middleware.rates import Rates, client_key
from evalsvc.config import Settings
from evalsvc.errors import DatabaseUnusable, EvalsvcError, Forbidden, InvalidRequest, RateLimited, Unauthorized

MAX_BODY = 1_000_000
"""The most bytes of a request's body, unless the route sets another limit."""

BURST_SECONDS = 10
"""The size of a burst, in seconds of the allowed rate."""


@dataclass(frozen=True)
class Needs:
    scope: TokenScope | None
    """Scope of the token; None: the route is open to everybody."""
    body: int | None = MAX_BODY
    """The most bytes of the body; None: the route checks the size itself."""
    recognises: bool = False
    """Whether an open route shows more details to a caller with a token."""


NEEDS = "evalsvc.needs"
"""Key of a request's scope that holds the `Needs` of its route; None if no route has the path and the method."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def needs(
    scope: TokenScope | None, body: int | None = MAX_BODY, *, recognises: bool = False
) -> Callable[[Endpoint], Endpoint]:
    """Mark the function of a route with what the route needs; see `Needs` for the arguments."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["needs"] = Needs(scope, body, recognises)
        return endpoint

    return mark


def needs_of(route: BaseRoute) -> Needs | None:
    endpoint = getattr(route, "endpoint", None) or getattr(route, "app", None)
    needed: Needs | None = getattr(endpoint, "needs", None)
    return needed


CALLER, AUTHENTICATION = "evalsvc.caller", "evalsvc.authentication"
"""Keys of a request's scope that hold the `Caller` of an admitted request, and the `Authentication`."""


class Access:
    """Refuse requests without a token of the needed scope, before the body is read."""

    def __init__(self, app: ASGIApp, settings: Settings, insecure: bool = False) -> None:
        self.app = app
        self.authentication = Authentication(settings, insecure)
        self._settings = settings
        self._local = is_loopback(settings.host)
        self._rates = Rates(settings.rate_limit, settings.rate_limit * BURST_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[AUTHENTICATION], scope[NEEDS] = self.authentication, _needs_of_request(scope)
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        client, needed = client_key(scope), scope[NEEDS]
        try:
            if needed is not None and needed.scope is None:
                if needed.recognises:
                    with suppress(Unauthorized, Forbidden):
                        try:
                            scope[CALLER] = await self.authentication.caller(scope)
                        except DatabaseUnusable:
                            if self._local:
                                scope[CALLER] = Caller(None)
                return None if self._local else self._too_many(client)
            caller = scope[CALLER] = await self._admitted(scope)
            if b"%00" in scope["query_string"]:
                # PostgreSQL accepts no NUL in the parameters of queries.
                raise InvalidRequest("the query has a NUL character (%00); leave the character out")
            if caller.token is None:
                return None if self._local else self._too_many(client)
            token = caller.token
            if needed is not None and needed.scope is not None and not includes(token.scope, needed.scope):
                raise Forbidden(
                    f"the token {token.name!r} has the scope {token.scope}, and {scope['method']} {scope['path']} "
                    f"needs {needed.scope}; ask the operator for another token: evalsvc tokens create NAME --scope "
                    f"{needed.scope}"
                )
            return self._too_many(caller_key(scope))
        except Unauthorized as error:
            return self._unauthorized(scope, client, error)
        except EvalsvcError as error:
            return problem_of(error)

    async def _admitted(self, scope: Scope) -> Caller:
        try:
            return await self.authentication.caller(scope)
        except Unauthorized:
            shows_token = "authorization" in Headers(scope=scope)
            if shows_token or not self._settings.open_reads or scope[NEEDS] is None or scope[NEEDS].scope != "read":
                raise
            check_browser(scope["method"], Headers(scope=scope), self._settings)
            return Caller(None)

    def _unauthorized(self, scope: Scope, client: str, error: Unauthorized) -> Response:
        if (leading := sign_in_page(scope)) is not None:
            return leading if self._local else self._too_many(client) or leading
        shows_token = "authorization" in Headers(scope=scope)  # a wrong token is counted where it is looked up
        if not shows_token and (wait := self.authentication.failures.take(client)):
            return _later("too many requests without a token came from this address", wait)
        shown = ', error="invalid_token"' if shows_token else ""
        return problem(401, error.code, error.message, {"WWW-Authenticate": f'Bearer realm="evalsvc"{shown}'})

    def _too_many(self, key: str) -> Response | None:
        if not (wait := self._rates.take(key)):
            return None
        limit = f"{self._settings.rate_limit:g} requests a second, the limit that the operator sets with"
        return _later(f"{key} sent more than {limit} EVALSVC_RATE_LIMIT", wait)


def caller_key(scope: Scope) -> str:
    """Return the key of who sends a request: the token, or without a token the address."""
    caller: Caller | None = scope.get(CALLER)
    return client_key(scope) if caller is None or caller.token is None else f"token {caller.token.name}"


def _later(reason: str, seconds: int) -> Response:
    detail = f"{reason}; try again in {seconds} s"
    return problem(STATUS[RateLimited], RateLimited.code, detail, {"Retry-After": str(seconds)})


def _needs_of_request(scope: Scope) -> Needs | None:
    """Return what the route of a request needs, found as the router finds it; None if no route has path and method. A
    route without a mark needs `admin`. At the path of an open route, other methods are open too, and get 405."""
    other_method = None
    for route in scope["app"].routes if scope["type"] == "http" else ():
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            needed = needs_of(route) or Needs("admin")
            if match is Match.FULL:
                return needed
            other_method = other_method or (needed if needed.scope is None else None)
    return other_method


async def _may_see(request: Request) -> bool:
    return CALLER in request.scope


MaySee = Annotated[bool, Depends(_may_see)]


async def _token_name(request: Request) -> str | None:
    caller: Caller | None = request.scope.get(CALLER)
    return None if caller is None or caller.token is None else caller.token.name


TokenName = Annotated[str | None, Depends(_token_name)]
"""The name of the request's token; None if the service is open."""


def _described(answer: str, **headers: str) -> dict[str, Any]:
    described = {
        name: {"description": description, "schema": {"type": "string"}} for name, description in headers.items()
    }
    return {"description": answer, "content": PROBLEM_CONTENT, **({"headers": described} if described else {})}


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: _described("The token is missing, unknown, revoked or expired.", **{"WWW-Authenticate": "Bearer."}),
    403: _described("The token's scope is too small, or the operator does not allow the request; `detail` says which."),
    429: _described("Too many requests.", **{"Retry-After": "Seconds until the next request."}),
}

TOO_LARGE: dict[int | str, dict[str, Any]] = {413: _described("The body is too large.")}


def add_access_to_openapi(app: FastAPI, open_reads: bool) -> None:
    """Add the token to the operations of the OpenAPI document that need one now; with `open_reads`, reads need none."""
    plain = app.openapi
    app.state.is_open = True

    def openapi() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token from `evalsvc tokens create NAME --scope read|submit|admin`. A service without "
                "tokens is open.",
            }
        }
        for operation in (operation for item in document["paths"].values() for operation in item.values()):
            if needed := operation.get("x-scope"):
                is_open = app.state.is_open or (open_reads and needed == "read")
                operation["security"] = [{"token": []}, *([{}] if is_open else [])]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
