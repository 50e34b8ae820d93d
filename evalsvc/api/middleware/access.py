"""Access control, against a `stranger` and a `reader`: the scope of each route, and the check of each token.

A service is open until the first token is created, if only this machine can reach its address. From then on, every
request needs a token or the session of a browser that signed in with a token, except for the routes in `OPEN`. With the
setting `open_reads`, reads need neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Match, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from evalsvc.access_tokens import TokenScope, includes
from evalsvc.api.errors import PROBLEM_CONTENT, STATUS, problem, problem_of
from evalsvc.api.middleware.authentication import SIGN_IN, SIGN_OUT, Authentication, Caller, sign_in_page
from evalsvc.api.middleware.browsers import check_browser, is_loopback
from evalsvc.api.middleware.rates import Rates, client_key
from evalsvc.config import Settings
from evalsvc.errors import DatabaseUnusable, EvalsvcError, Forbidden, InvalidRequest, RateLimited, Unauthorized
from evalsvc.store.tables import Token

SCOPES: Mapping[tuple[str, str], TokenScope] = {
    ("GET", "/v1/suites"): "read",
    ("GET", "/v1/suites/{name}"): "read",
    ("PUT", "/v1/suites/{name}"): "submit",
    ("DELETE", "/v1/suites/{name}"): "admin",
    ("POST", "/v1/checkpoints"): "submit",
    ("GET", "/v1/checkpoints"): "read",
    ("GET", "/v1/checkpoints/{checkpoint_id}"): "read",
    ("DELETE", "/v1/checkpoints/{checkpoint_id}"): "admin",
    ("OPTIONS", "/v1/uploads"): "submit",
    ("POST", "/v1/uploads"): "submit",
    ("GET", "/v1/uploads/{sha256}"): "read",
    ("PATCH", "/v1/uploads/{sha256}"): "submit",
    ("POST", "/v1/evaluations"): "submit",
    ("GET", "/v1/evaluations"): "read",
    ("GET", "/v1/evaluations/{evaluation_id}"): "read",
    ("GET", "/v1/evaluations/{evaluation_id}/suite"): "read",
    ("GET", "/v1/evaluations/{evaluation_id}/events"): "read",
    ("GET", "/v1/evaluations/{evaluation_id}/items"): "read",
    ("GET", "/v1/evaluations/{evaluation_id}/artifacts"): "read",
    ("POST", "/v1/evaluations/{evaluation_id}/cancel"): "submit",
    ("POST", "/v1/evaluations/{evaluation_id}/retry"): "submit",
    ("GET", "/v1/artifacts/{artifact_id}"): "read",
    ("POST", "/v1/prune"): "admin",
    ("GET", "/v1/runs/{run}/retention"): "read",
    ("PUT", "/v1/runs/{run}/retention"): "admin",
    ("GET", "/v1/runs"): "read",
    ("GET", "/v1/runs/{run}"): "read",
    ("PATCH", "/v1/runs/{run}"): "admin",
    ("DELETE", "/v1/runs/{run}"): "admin",
    ("GET", "/v1/runs/{run}/plan"): "read",
    ("PUT", "/v1/runs/{run}/plan"): "submit",
    ("PUT", "/v1/runs/{run}/base"): "submit",
    ("GET", "/v1/runs/{run}/results/{step}"): "read",
    ("GET", "/v1/runs/{run}/completions"): "read",
    ("GET", "/v1/runs/{run}/metrics"): "read",
    ("POST", "/v1/runs/{run}/metrics"): "submit",
    ("GET", "/v1/runs/{run}/summary"): "read",
    ("GET", "/v1/runs/{run}/headline"): "read",
    ("GET", "/v1/runs/{run}/artifacts"): "read",
    ("GET", "/v1/headlines"): "read",
    ("GET", "/v1/protocols"): "read",
    ("GET", "/v1/protocols/{protocol_id}"): "read",
    ("GET", "/v1/compare"): "read",
    ("GET", "/v1/compare/curves"): "read",
    ("GET", "/v1/table"): "read",
    ("GET", "/v1/status"): "read",
    ("GET", "/metrics"): "read",
    ("GET", "/"): "read",
    ("GET", "/runs/{run}"): "read",
    ("GET", "/runs/{run}/images"): "read",
    ("GET", "/runs/{run}/text"): "read",
    ("GET", "/runs/{run}/checkpoints"): "read",
    ("GET", "/compare"): "read",
    ("GET", "/evaluations/{evaluation}"): "read",
    ("GET", "/protocols/{protocol}"): "read",
    ("GET", "/status"): "read",
    ("GET", "/panels/{file}"): "read",
    ("POST", "/evaluations/{evaluation}/{act}"): "submit",
}
"""The scope that each route needs. A missing route needs `admin`, and a test checks that no route is missing."""

READY = "/readyz"

DOCUMENT = "/openapi.json"

OPEN = ("/healthz", READY, "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", DOCUMENT, SIGN_IN, SIGN_OUT)
"""Routes that need no token. `/readyz` shows details only to requests with a valid token."""

OPEN_FOLDERS = ("/static/", "/vega/")
"""Paths of files that are the same for everybody, and need no token."""

BURST_SECONDS = 10
"""The size of a burst, in seconds of the allowed rate."""

CALLER = "evalsvc.caller"
"""Key of a request's scope that holds the `Caller` of an admitted request."""

AUTHENTICATION = "evalsvc.authentication"
"""Key of a request's scope that holds the `Authentication`, for the routes that sign in and out."""


class Access:
    """Refuse requests without a token of the needed scope, before the body is read."""

    def __init__(self, app: ASGIApp, settings: Settings, insecure: bool = False) -> None:
        """Wrap the application. `insecure`: admit every client without a token while no token exists."""
        self.app = app
        self.authentication = Authentication(settings, insecure)
        self._settings = settings
        self._local = is_loopback(settings.host)
        self._rates = Rates(settings.rate_limit, settings.rate_limit * BURST_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[AUTHENTICATION] = self.authentication
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer that refuses a request; None for an admitted request."""
        client = client_key(scope)
        try:
            if _is_open(scope["path"]):
                await self._recognise(scope)
                return None if self._local else self._too_many(client)
            caller = scope[CALLER] = await self._admitted(scope)
            if b"%00" in scope["query_string"]:
                # PostgreSQL accepts no NUL in the parameters of queries.
                raise InvalidRequest("the query has a NUL character (%00); leave the character out")
            if caller.token is None:
                return None if self._local else self._too_many(client)
            _require_scope(caller.token, scope)
            return self._too_many(caller_key(scope))
        except Unauthorized as error:
            return self._unauthorized(scope, client, error)
        except EvalsvcError as error:
            return problem_of(error)

    async def _admitted(self, scope: Scope) -> Caller:
        """Return who sends a request; with the setting `open_reads`, anybody reads.

        Raises:
            Unauthorized: the request has no valid token.
            Forbidden: a web page of another site sends the request to an open service.
            DatabaseUnusable: the tokens cannot be read.
        """
        try:
            return await self.authentication.caller(scope)
        except Unauthorized:
            shows_token = "authorization" in Headers(scope=scope)
            if shows_token or not self._settings.open_reads or needed_scope(scope) != "read":
                raise
            check_browser(scope["method"], Headers(scope=scope), self._settings)
            return Caller(None)

    def _unauthorized(self, scope: Scope, client: str, error: Unauthorized) -> Response:
        """Return the answer to a request without a valid token: a page leads to the sign-in."""
        if (leading := sign_in_page(scope)) is not None:
            return leading if self._local else self._too_many(client) or leading
        shows_token = "authorization" in Headers(scope=scope)  # a wrong token is counted where it is looked up
        if not shows_token and (wait := self.authentication.failures.take(client)):
            return _later("too many requests without a token came from this address", wait)
        shown = ', error="invalid_token"' if shows_token else ""
        return problem(401, error.code, error.message, {"WWW-Authenticate": f'Bearer realm="evalsvc"{shown}'})

    async def _recognise(self, scope: Scope) -> None:
        """Record the caller of a request to a route in `OPEN`, which may show more details to a caller with a token."""
        if scope["path"] in (READY, DOCUMENT):
            with suppress(Unauthorized, Forbidden):
                try:
                    scope[CALLER] = await self.authentication.caller(scope)
                except DatabaseUnusable:
                    if self._local:
                        scope[CALLER] = Caller(None)

    def _too_many(self, key: str) -> Response | None:
        if wait := self._rates.take(key):
            rate = self._settings.rate_limit
            return _later(
                f"{key} sent more than {rate:g} requests a second, the limit that the operator sets with "
                "EVALSVC_RATE_LIMIT",
                wait,
            )
        return None


def caller_key(scope: Scope) -> str:
    """Return the key of who sends a request: the token, or without a token the address."""
    caller: Caller | None = scope.get(CALLER)
    return client_key(scope) if caller is None or caller.token is None else f"token {caller.token.name}"


def _later(reason: str, seconds: int) -> Response:
    detail = f"{reason}; try again in {seconds} s"
    return problem(STATUS[RateLimited], RateLimited.code, detail, {"Retry-After": str(seconds)})


def _require_scope(token: Token, scope: Scope) -> None:
    method, path = scope["method"], scope["path"]
    needed = needed_scope(scope)
    if needed is not None and not includes(token.scope, needed):
        raise Forbidden(
            f"the token {token.name!r} has the scope {token.scope}, and {method} {path} needs {needed}; ask the "
            f"operator for another token: evalsvc tokens create NAME --scope {needed}"
        )


def needed_scope(scope: Scope) -> TokenScope | None:
    """Return the scope that a request needs; None if no route has its path and method."""
    for pattern, needed in _PATTERNS.get(scope["method"], ()):
        if pattern.match(scope["path"]):
            return needed
    hidden = any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)
    return "admin" if hidden and not _is_open(scope["path"]) else None


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDERS)


_PATTERNS: dict[str, list[tuple[Any, TokenScope]]] = {}
for (_method, _path), _scope in SCOPES.items():
    _PATTERNS.setdefault(_method, []).append((compile_path(_path)[0], _scope))


async def _may_see(request: Request) -> bool:
    """Tell whether a request may see details: the service is open, or the request has a valid token."""
    return CALLER in request.scope


MaySee = Annotated[bool, Depends(_may_see)]


async def _token_name(request: Request) -> str | None:
    caller: Caller | None = request.scope.get(CALLER)
    return None if caller is None or caller.token is None else caller.token.name


TokenName = Annotated[str | None, Depends(_token_name)]
"""The name of the request's token; None if the service is open."""


def describe_access(document: dict[str, Any], is_open: bool, open_reads: bool = False) -> dict[str, Any]:
    """Return the OpenAPI document with the refusals of this layer, and with the scope that each operation needs.

    Args:
        document: the document without access.
        is_open: whether no request needs a token.
        open_reads: whether requests that need the scope `read` need no token.
    """
    document.setdefault("components", {}).setdefault("securitySchemes", {})["token"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A token from `evalsvc tokens create NAME --scope read|submit|admin`. A service without tokens "
        "is open.",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in OPEN:
                continue
            needed = SCOPES.get((method.upper(), path), "admin")
            operation["security"] = [{"token": []}, *([{}] if is_open or (open_reads and needed == "read") else [])]
            operation["x-scope"] = needed
            operation["responses"] |= _REFUSALS | (_TOO_LARGE if "requestBody" in operation else {})
    return document


def _described(answer: str, **headers: str) -> dict[str, object]:
    described: dict[str, object] = {
        name: {"description": description, "schema": {"type": "string"}} for name, description in headers.items()
    }
    return {"description": answer, "content": PROBLEM_CONTENT, **({"headers": described} if described else {})}


_REFUSALS = {
    "401": _described("The token is missing, unknown, revoked or expired.", **{"WWW-Authenticate": "Bearer."}),
    "403": _described(
        "The token's scope is too small, or the operator does not allow the request; `detail` says which."
    ),
    "429": _described("Too many requests.", **{"Retry-After": "Seconds until the next request."}),
}

_TOO_LARGE = {"413": _described("The body is too large.")}


def add_access_to_openapi(app: FastAPI, open_reads: bool) -> None:
    """Add the refusals and scopes of this layer to the application's OpenAPI document; see `describe_access`."""
    plain = app.openapi
    app.state.is_open = True
    app.openapi = lambda: describe_access(plain(), app.state.is_open, open_reads)  # type: ignore[method-assign]
