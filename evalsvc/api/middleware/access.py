"""Access control: the scope that each route needs, and the check of every request's token.

A service is open until the first token is created, if only this machine can reach its address. From then on, every
request needs a token, except for the routes in `OPEN`.
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
from evalsvc.api.errors import PROBLEM_CONTENT, STATUS, problem
from evalsvc.api.middleware.browsers import check_browser, is_loopback
from evalsvc.api.middleware.known_tokens import KnownTokens, find_token
from evalsvc.api.middleware.rates import Rates, address_key
from evalsvc.config import Settings
from evalsvc.errors import DatabaseUnusable, EvalsvcError, Forbidden, InvalidRequest, RateLimited, Unauthorized
from evalsvc.log import note
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
    ("GET", "/v1/uploads"): "read",
    ("HEAD", "/v1/uploads/{upload_id}"): "submit",
    ("GET", "/v1/uploads/{upload_id}"): "read",
    ("PATCH", "/v1/uploads/{upload_id}"): "submit",
    ("DELETE", "/v1/uploads/{upload_id}"): "submit",
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
}
"""The scope that each route needs. A missing route needs `admin`, and a test checks that no route is missing."""

READY = "/readyz"

DOCUMENT = "/openapi.json"

OPEN = ("/healthz", READY, "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", DOCUMENT)
"""Routes that need no token. `/readyz` shows details only to requests with a valid token."""

OPEN_FOLDERS = ("/static/", "/vega/")
"""Paths of files that are the same for everybody, and need no token."""

FAILURES, FAILURES_EVERY = 10, 6.0
"""The number of invalid tokens that an address may send in a burst, and the seconds for each further one."""

BURST_SECONDS = 10
"""The size of a burst, in seconds of the allowed rate."""

_WHO = "evalsvc.token"


class Access:
    """Refuse requests without a token of the needed scope, before the body is read."""

    def __init__(self, app: ASGIApp, settings: Settings, insecure: bool = False) -> None:
        """Wrap the application. `insecure`: admit every client without a token while no token exists."""
        self.app = app
        self.tokens = KnownTokens()
        self._settings = settings
        self._local = is_loopback(settings.host)
        self._may_be_open = self._local or insecure
        self._rates = Rates(settings.rate_limit, settings.rate_limit * BURST_SECONDS)
        self._failures = Rates(1 / FAILURES_EVERY, FAILURES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer that refuses a request; None for an admitted request."""
        client = address_key((scope["client"] or ("unknown", 0))[0])
        try:
            if _is_open(scope["path"]):
                await self._recognise(scope)
                return None if self._local else self._too_many(client)
            token = scope[_WHO] = await self._who(scope)
            if b"%00" in scope["query_string"]:
                # PostgreSQL accepts no NUL in the parameters of queries.
                raise InvalidRequest("the query has a NUL character (%00); leave the character out")
            if token is None:
                return None if self._local else self._too_many(client)
            _require_scope(token, scope)
            return self._too_many(f"token {token.name}")
        except Unauthorized as error:
            if wait := self._failures.take(client):
                return _later("this address sent too many requests without a valid token", wait)
            shown = ', error="invalid_token"' if "authorization" in Headers(scope=scope) else ""
            return problem(401, error.code, error.message, {"WWW-Authenticate": f'Bearer realm="evalsvc"{shown}'})
        except EvalsvcError as error:
            return problem(STATUS[type(error)], error.code, error.message)

    async def _who(self, scope: Scope) -> Token | None:
        """Return the token of a request; None if the service is open.

        Raises:
            Unauthorized: the request has no valid token.
            Forbidden: a web page of another site sends the request to an open service.
            DatabaseUnusable: the tokens cannot be read.
        """
        headers = Headers(scope=scope)
        store = scope["app"].state.state.store
        tokens = await self.tokens.read(store)
        is_open = scope["app"].state.is_open = not tokens and self._may_be_open
        if is_open:
            check_browser(scope["method"], headers, self._settings)
            return None
        token = find_token(tokens, headers.get("authorization"), self.tokens.now())
        note(token=token.name)
        if not self._settings.read_only:
            self.tokens.note_use(token, store)
        return token

    async def _recognise(self, scope: Scope) -> None:
        """Record the token of a request to a route in `OPEN`, which may show more details to a request with a token."""
        if scope["path"] in (READY, DOCUMENT):
            with suppress(Unauthorized, Forbidden):
                try:
                    scope[_WHO] = await self._who(scope)
                except DatabaseUnusable:
                    if self._local:
                        scope[_WHO] = None

    def _too_many(self, key: str) -> Response | None:
        if wait := self._rates.take(key):
            rate = self._settings.rate_limit
            return _later(
                f"{key} sent more than {rate:g} requests a second, the limit that the operator sets with "
                "EVALSVC_RATE_LIMIT",
                wait,
            )
        return None


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
    return _WHO in request.scope


MaySee = Annotated[bool, Depends(_may_see)]


async def _token_name(request: Request) -> str | None:
    token = request.scope.get(_WHO)
    return None if token is None else token.name


TokenName = Annotated[str | None, Depends(_token_name)]
"""The name of the request's token; None if the service is open."""


def describe_access(document: dict[str, Any], is_open: bool) -> dict[str, Any]:
    """Add the answers of refused requests, and the scope that each operation needs, to an OpenAPI document."""
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
            operation["security"] = [{"token": []}, *([{}] if is_open else [])]
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


def add_access_to_openapi(app: FastAPI) -> None:
    """Add the answers of refused requests and the scopes to the application's OpenAPI document."""
    plain = app.openapi
    app.state.is_open = True
    app.openapi = lambda: describe_access(plain(), app.state.is_open)  # type: ignore[method-assign]
