"""Who is let in, and what for."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from app_in_process import App, needs_by_route, refused
from sqlalchemy.exc import OperationalError

from evalsvc.access_tokens import TokenScope, new_token
from evalsvc.api.app import create_app
from evalsvc.api.middleware import authentication
from evalsvc.api.routes import docs
from evalsvc.api.routing import router_of
from evalsvc.config import Settings
from evalsvc.store.tokens import all_tokens, create_token, revoke_token

Tokens = Callable[..., dict[str, str]]
Start = Callable[..., App]


@pytest.fixture(autouse=True)
def _no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)


@pytest.fixture
def token(app: App) -> Tokens:
    """Makes a token; the headers that show it."""

    def make(scope: TokenScope = "read", name: str = "", days: float | None = None) -> dict[str, str]:
        with app.store.transaction() as session:
            return {"Authorization": f"Bearer {create_token(session, name or scope, scope, days)}"}

    return make


# Open or not


def test_with_the_first_token_nobody_comes_in_without(app: App, token: Tokens, weights: Path) -> None:
    """While the service runs: nothing has to be started anew."""
    assert app.http.get("/v1/runs").status_code == 200
    headers = token("submit")
    response = app.http.get("/v1/runs")
    detail = refused(response, 401, "unauthorized", "this service needs a token", "EVALSVC_TOKEN", "tokens create")
    assert response.headers["www-authenticate"] == 'Bearer realm="evalsvc"'
    assert "submit" not in detail
    refused(app.post(weights), 401, "unauthorized")
    assert app.http.get("/v1/runs", headers=headers).json()["runs"] == []


def test_every_route_but_the_open_ones_asks_for_a_token(app: App, token: Tokens) -> None:
    """Whatever is there, and whatever is not: what exists is nobody's business."""
    token()
    closed = {route for route, needed in needs_by_route(app.app).items() if needed and needed.scope}
    asked = {route for route in closed if route[1].startswith("/v1/") or route[1] == "/metrics"}
    paths = app.http.get("/openapi.json").json()["paths"]
    listed = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert asked == listed - {("GET", "/healthz"), ("GET", "/readyz")}
    nothing = {("GET", "/v1/nothing"), ("OPTIONS", "/v1/runs"), ("DELETE", "/"), ("HEAD", "/v1/runs")}
    for method, path in closed | nothing:
        response = app.http.request(method, re.sub(r"\{\w+\}", "1", path))
        is_page = method == "GET" and (method, path) in closed - asked
        assert response.status_code in ((303, 401, 429) if is_page else (401, 429)), (method, path)
        assert "evalsvc" not in response.text or response.status_code in (401, 429)


def test_open_routes_tell_only_that_the_service_lives(app: App, token: Tokens) -> None:
    headers = token()
    app.coordinator.processes = 0
    assert app.http.get("/healthz").json()["status"] == "ok"
    assert app.http.get("/docs").status_code == 200
    assert refused(app.http.get("/readyz"), 503, "not_ready").endswith("send a token to see what is missing")
    refused(app.http.get("/readyz", headers=headers), 503, "not_ready", "no live worker")
    app.coordinator.processes = 1
    assert app.http.get("/readyz").json() == {"status": "ok"}
    assert app.http.get("/readyz", headers={"Authorization": f"Bearer {new_token()}"}).json() == {"status": "ok"}
    assert app.http.get("/readyz", headers=headers).json()["workers"] == 1


def test_the_service_stays_closed_when_the_last_token_is_revoked(app: App, token: Tokens) -> None:
    headers = token()
    with app.store.transaction() as session:
        revoke_token(session, "read")
    refused(app.http.get("/v1/runs"), 401, "unauthorized")
    refused(app.http.get("/v1/runs", headers=headers), 401, "unauthorized", "the token 'read' was revoked")


def test_an_address_that_others_reach_is_closed_without_any_token(start_app: Start) -> None:
    """`serve` refuses to start so; a database that is emptied later must not open it."""
    app = start_app(host="0.0.0.0")
    refused(app.http.get("/v1/runs"), 401, "unauthorized", "needs a token")
    assert app.http.get("/healthz").status_code == 200


def test_an_address_that_others_reach_is_open_if_that_is_asked_for(start_app: Start) -> None:
    app = start_app(host="0.0.0.0", insecure=True, rate_limit=0.1)
    assert [app.http.get("/v1/runs").status_code for _ in range(2)] == [200, 429], "counted by address"
    with app.store.transaction() as session:
        create_token(session, "ci", "read")
    refused(app.http.get("/v1/runs"), 401, "unauthorized")


# Wrong tokens


def test_what_is_no_token_here(app: App, token: Tokens) -> None:
    token()
    for header, words in (
        ("Bearer evalsvc_wrong", "does not know the token; check that the token was copied whole"),
        ("Bearer ", "does not know the token"),
        ("Bearer", "does not know the token"),
        ("bearer ÿ", "does not know the token"),
        ("Basic dXNlcjpwYXNz", "holds no bearer token; send `Authorization: Bearer TOKEN`"),
        ("", "holds no bearer token"),
    ):
        response = app.http.get("/v1/runs", headers={"Authorization": header.encode("latin-1")})
        detail = refused(response, 401, "unauthorized", words)
        assert response.headers["www-authenticate"] == 'Bearer realm="evalsvc", error="invalid_token"'
        assert "dXNlcjpwYXNz" not in detail
        assert "evalsvc_wrong" not in detail


def test_the_hash_is_no_token_and_a_token_in_the_address_is_none(app: App, token: Tokens) -> None:
    """Who reads the database must not come in by what is kept there; addresses end up in logs and histories."""
    shown = token()["Authorization"].removeprefix("Bearer ")
    refused(app.http.get("/v1/runs", params={"token": shown}), 401, "unauthorized")
    with app.store.reading() as session:
        (kept,) = all_tokens(session)
    refused(app.http.get("/v1/runs", headers={"Authorization": f"Bearer {kept.sha256}"}), 401, "unauthorized")


def test_wrong_tokens_are_slowed_down_and_right_ones_not(app: App, token: Tokens) -> None:
    """A neighbour behind the same address must not be locked out by who tries there."""
    headers = token()
    statuses = [app.http.get("/v1/runs").status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    response = app.http.get("/v1/runs")
    refused(response, 429, "rate_limited", "too many requests without a token", "try again in")
    assert 1 <= int(response.headers["retry-after"]) <= 6
    assert app.http.get("/v1/runs", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/openapi.json", "/sign-in", "/v1/runs"])
def test_wrong_tokens_count_wherever_a_token_is_looked_at(app: App, token: Tokens, path: str) -> None:
    """At `/readyz`, whose answer shows whether a token is right, tokens could be tried without a limit."""
    headers, wrong = token(), {"Authorization": f"Bearer evs_{'A' * 43}"}
    assert {app.http.get(path).status_code for _ in range(20)} <= ({429, 401} if path == "/v1/runs" else {200})
    statuses = [app.http.get(path, headers=wrong).status_code for _ in range(12)]
    assert 429 in statuses
    limited = app.http.get(path, headers=wrong)
    assert (limited.status_code, limited.headers["retry-after"].isdigit()) == (429, True)
    assert "too many wrong tokens came from this address" in limited.text
    assert app.http.get(path, headers=headers).status_code == 200


# Scopes


def test_what_changes_something_is_not_read(app: App) -> None:
    scopes = {route: needed.scope for route, needed in needs_by_route(app.app).items() if needed and needed.scope}
    assert [route for route, scope in scopes.items() if (route[0] == "GET") != (scope == "read")] == []
    assert [route for route, scope in scopes.items() if route[0] == "DELETE" and scope != "admin"] == []


def test_a_route_without_a_scope_fails_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "_send_document", lambda _request: None)
    with pytest.raises(TypeError, match=r"mark the functions of these routes with `@needs\(SCOPE\)`: .*/openapi.json"):
        create_app(Settings())
    with pytest.raises(KeyError, match="needs"):
        router_of().get("/v1/new")(lambda: "found")


def test_scopes(app: App, token: Tokens) -> None:
    """A route that was added without a scope needs admin by itself."""
    app.app.add_api_route("/hidden", lambda: "found", include_in_schema=False)
    tokens = {scope: token(scope) for scope in ("read", "submit", "admin")}
    for scope, method, path, needed in (
        ("read", "GET", "/v1/runs", None),
        ("read", "POST", "/v1/checkpoints", "submit"),
        ("read", "POST", "/v1/evaluations/1/cancel", "submit"),
        ("submit", "GET", "/v1/runs", None),
        ("submit", "POST", "/v1/checkpoints", None),
        ("submit", "GET", "/hidden", "admin"),
        ("admin", "GET", "/hidden", None),
    ):
        response = app.http.request(method, path, headers=tokens[scope], json={})
        if needed is None:
            assert response.status_code not in (401, 403), response.text
        else:
            words = f"the token {scope!r} has the scope {scope}, and {method} {path} needs {needed}"
            refused(response, 403, "forbidden", words, f"evalsvc tokens create NAME --scope {needed}")


# Rates


def test_a_token_that_asks_too_often_is_told_when_to_ask_again(start_app: Start) -> None:
    app = start_app(rate_limit=0.1)
    assert {app.http.get("/v1/runs").status_code for _ in range(20)} == {200}, "open: no limit on this machine"
    with app.store.transaction() as session:
        one, other = (create_token(session, name, "read") for name in ("one", "other"))
    asked = [app.http.get("/v1/runs", headers={"Authorization": f"Bearer {one}"}) for _ in range(3)]
    assert [response.status_code for response in asked] == [200, 429, 429]
    words = ("token one sent more than 0.1 requests a second", "try again in 10 s")
    refused(asked[1], 429, "rate_limited", *words)
    assert asked[1].headers["retry-after"] == "10"
    assert app.http.get("/v1/runs", headers={"Authorization": f"Bearer {other}"}).status_code == 200


# The document


@pytest.mark.parametrize("closed", [False, True])
def test_the_document_tells_of_the_door(app: App, token: Tokens, closed: bool) -> None:
    """Generated clients, and tests that look for routes that let in whom they should not, go by it."""
    if closed:
        token()
    document, scopes = app.http.get("/openapi.json").json(), needs_by_route(app.app)
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in ("/healthz", "/readyz"):
                assert not operation.keys() & {"security", "x-scope"}, path
                continue
            assert operation["security"] == ([{"token": []}] if closed else [{"token": []}, {}])
            assert operation["x-scope"] == scopes[method.upper(), path].scope
            assert {"401", "403", "429"} <= operation["responses"].keys()
            assert ("413" in operation["responses"]) == ("requestBody" in operation)


def away(session: object) -> list[object]:
    raise OperationalError("SELECT", {}, Exception("connection refused"))


@pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0", "insecure": True}], ids=["here", "elsewhere"])
def test_whether_there_are_tokens_is_not_known(
    start_app: Start, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """A database that has never answered: nobody is let in on the chance that there are none."""

    def away(session: object) -> list[object]:
        raise OperationalError("SELECT", {}, Exception("connection refused"))

    monkeypatch.setattr(authentication, "all_tokens", away)
    app = start_app(**settings)
    refused(app.http.get("/v1/runs"), 503, "database_unusable", "connection refused")
    assert app.http.get("/healthz").status_code == 200
    assert ("database" in app.http.get("/readyz").json()) == (not settings), "on this machine the operator is told all"


# Ways around

EMPTY = {"type": "http.request", "body": b""}
PIECE = {"type": "http.request", "body": b" " * 100_000, "more_body": True}


def sent_by(app: App, incoming: Iterable[Any], headers: dict[str, str], **scope: Any) -> list[Any]:
    """Return what the application sends to a request that a server passes on unchanged."""
    messages, sent = iter(incoming), list[Any]()

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.lower().encode(), text.encode()) for name, text in ({"Host": "evalsvc"} | headers).items()]
    scope = {"type": "http", "query_string": b"", "headers": pairs, "client": ("10.0.0.1", 1)} | scope
    app.portal.call(app.app, scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/check%70oints", {}, 403),
        ("POST", "/v1//checkpoints", {}, 404),
        ("POST", "/v1/checkpoints/", {}, 307),
        ("POST", "/V1/checkpoints", {}, 404),
        ("POST", "/v1/checkpoints;a", {}, 404),
        ("POST", "/v1/runs/a/plan", {"X-HTTP-Method-Override": "PUT"}, 405),
        ("GET", "/v1/runs/a", {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE"}, 404),
        ("GET", "/v1/runs/a?_method=DELETE", {}, 422),
        ("GET", "/v1/nothing", {"X-Original-URL": "/v1/runs", "X-Rewrite-URL": "/v1/runs"}, 404),
        ("DELETE", "/v1/runs%2Fa", {}, 403),
        ("DELETE", "/v1/%72uns/a", {}, 403),
        ("DELETE", "/v1/status/..%2Fruns/a", {}, 404),
        ("DELETE", "//v1/runs/a", {}, 404),
        ("DELETE", "/static/..%2Fv1/runs/a", {}, 405),
        ("DELETE", "/v1/runs/a/", {}, 307),
        ("HEAD", "/v1/prune", {}, 405),
        ("TRACE", "/v1/runs", {}, 405),
        ("delete", "/v1/runs/a", {}, 405),
    ],
)
def test_no_spelling_of_a_request_needs_less(
    app: App, token: Tokens, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """The scope is that of the route that the router takes, and no header names another one."""
    raw, _, query = path.partition("?")
    address = {"path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode()}
    sent = sent_by(app, [EMPTY], token("read") | headers, method=method, **address)
    assert sent[0]["status"] == status


def test_the_first_of_two_tokens_counts(app: App, token: Tokens) -> None:
    read, admin = (token(scope)["Authorization"] for scope in ("read", "admin"))
    for values, status in (((read, admin), 403), (("Bearer evs_wrong", admin), 401), ((admin, read), 404)):
        headers = [("Authorization", value) for value in values]
        assert app.http.request("DELETE", "/v1/runs/a?confirm=a", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "incoming", "status"),
    [
        ("GET", "/v1/runs", [], 200),
        ("POST", "/v1/checkpoints", [PIECE] * 11, 413),
        ("POST", "/v1/nothing", [], 404),
        ("POST", "/v1/prune", [], 403),
    ],
)
def test_no_more_of_a_body_is_read_than_the_route_takes(
    app: App, token: Tokens, method: str, path: str, incoming: list[Any], status: int
) -> None:
    """A read takes none; a body without a length is counted as it arrives."""
    headers = token("submit") | {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    assert sent_by(app, incoming, headers, method=method, path=path)[0]["status"] == status


def test_no_socket_opens(app: App) -> None:
    sent = sent_by(app, [{"type": "websocket.connect"}], {}, type="websocket", path="/v1/runs")
    assert [message["type"] for message in sent] == ["websocket.close"]
