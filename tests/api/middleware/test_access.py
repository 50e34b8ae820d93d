"""Who is let in, and what for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_in_process import App, refused
from sqlalchemy.exc import OperationalError

from evalsvc.access_tokens import TokenScope, new_token
from evalsvc.api.middleware import access, known_tokens
from evalsvc.api.middleware.access import OPEN, SCOPES
from evalsvc.store.tables import Checkpoint
from evalsvc.store.tokens import all_tokens, create_token, revoke_token

Tokens = Callable[..., dict[str, str]]
Start = Callable[..., App]


@pytest.fixture(autouse=True)
def _no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_tokens, "LIFETIME", -1.0)


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
    paths = app.http.get("/openapi.json").json()["paths"]
    asked = [(method, path) for path, operations in paths.items() for method in operations if path not in OPEN]
    pages = [(method, path) for method, path in SCOPES if not path.startswith("/v1/") and path != "/metrics"]
    assert len(asked) + len(pages) == len(SCOPES)
    for method, path in pages:
        response = app.http.request(method, re.sub(r"\{\w+\}", "1", path))
        assert (response.status_code, method) in ((303, "GET"), (401, "GET"), (401, "POST")), (method, path)
        assert "evalsvc" not in response.text or response.status_code == 401
    for method, path in [
        *asked,
        ("get", "/v1/nothing"),
        ("options", "/v1/runs"),
        ("delete", "/"),
        ("head", "/v1/runs"),
    ]:
        response = app.http.request(method, re.sub(r"\{\w+\}", "1", path))
        assert response.status_code in (401, 429), (method, path)
        access_failures(app).clear()


def access_failures(app: App) -> dict[str, Any]:
    """The buckets of wrong tokens, which a test may empty."""
    layer: Any = app.app.middleware_stack
    while not isinstance(layer, access.Access):
        layer = layer.app
    return layer.authentication.failures._buckets


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
    app = start_app(host="0.0.0.0", insecure=True)
    assert app.http.get("/v1/runs").status_code == 200
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


def test_what_changes_something_is_not_read() -> None:
    assert [route for route, scope in SCOPES.items() if (route[0] == "GET") != (scope == "read")] == []
    deleted_by_others = [route for route, scope in SCOPES.items() if route[0] == "DELETE" and scope != "admin"]
    assert deleted_by_others == []


def hidden() -> str:
    return "found"


def test_scopes(app: App, token: Tokens) -> None:
    """A route that is not in the table, such as one out of the document, needs admin by itself."""
    app.app.add_api_route("/hidden", hidden, include_in_schema=False)
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


def test_nothing_of_the_body_is_read_before_the_door(app: App, token: Tokens) -> None:
    """A stranger could else have a megabyte parsed by each request."""
    sent = []

    async def receive() -> Any:
        raise AssertionError("was read")

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(headers: dict[str, str]) -> None:
        pairs = [(b"host", b"localhost"), *((name.lower().encode(), text.encode()) for name, text in headers.items())]
        scope = {"type": "http", "method": "POST", "path": "/v1/checkpoints", "query_string": b"", "headers": pairs}
        await app.app(scope | {"client": ("10.0.0.1", 1)}, receive, send)

    read = token("read")
    for headers, status in (({}, 401), (read, 403)):
        app.portal.call(ask, headers)
        assert [message["status"] for message in sent if "status" in message] == [status]
        sent.clear()


def test_paths_that_are_written_otherwise_need_the_same(app: App, token: Tokens) -> None:
    headers = token("read")
    for path in ("/v1/check%70oints", "/v1//checkpoints", "/v1/checkpoints/", "/V1/checkpoints", "/v1/checkpoints;a"):
        response = app.http.post(path, headers=headers, json={"run": "a", "step": 1, "uri": "/nowhere"})
        assert response.status_code in (403, 404, 405, 307), (path, response.text)
    with app.store.reading() as session:
        assert session.query(Checkpoint).count() == 0


def test_what_is_not_there_is_told_as_such_to_who_is_in(app: App, token: Tokens) -> None:
    headers = token("read")
    refused(app.http.get("/v1/nothing", headers=headers), 404, "unknown_name")
    response = app.http.delete("/v1/runs", headers=headers)
    refused(response, 405, "invalid_request", "DELETE is not possible")
    assert response.headers["allow"] == "GET, HEAD"


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


def test_an_open_service_on_another_address_counts_by_address(start_app: Start) -> None:
    app = start_app(host="0.0.0.0", insecure=True, rate_limit=0.1)
    assert [app.http.get("/v1/runs").status_code for _ in range(2)] == [200, 429]


# The document


@pytest.mark.parametrize("closed", [False, True])
def test_the_document_tells_of_the_door(app: App, token: Tokens, closed: bool) -> None:
    """Generated clients, and tests that look for routes that let in whom they should not, go by it."""
    if closed:
        token()
    document = app.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in OPEN:
                assert "security" not in operation, path
                continue
            assert operation["security"] == ([{"token": []}] if closed else [{"token": []}, {}])
            assert operation["x-scope"] == SCOPES[method.upper(), path]
            assert {"401", "403", "429"} <= operation["responses"].keys()
            assert ("413" in operation["responses"]) == ("requestBody" in operation)


def test_redirects_do_not_take_the_token_along(app: App, token: Tokens) -> None:
    """The only redirect there is, from a trailing slash, stays with the service whatever Host says."""
    response = app.http.get("/v1/runs/", headers=token())
    assert response.status_code == 307
    assert httpx.URL(response.headers["location"]).host == "evalsvc"


def away(session: object) -> list[object]:
    raise OperationalError("SELECT", {}, Exception("connection refused"))


def test_whether_there_are_tokens_is_not_known(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that has never answered: nobody is let in on the chance that there are none."""
    monkeypatch.setattr(known_tokens, "all_tokens", away)
    refused(app.http.get("/v1/runs"), 503, "database_unusable", "connection refused")
    assert app.http.get("/healthz").status_code == 200
    assert app.http.get("/readyz").json()["database"] == "ok", "on this machine the operator is told all"


def test_whether_there_are_tokens_is_not_known_elsewhere(start_app: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_tokens, "all_tokens", away)
    app = start_app(host="0.0.0.0", insecure=True)
    refused(app.http.get("/v1/runs"), 503, "database_unusable")
    assert app.http.get("/readyz").json() == {"status": "ok"}
