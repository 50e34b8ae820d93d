"""Who is let in, and what for."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, needs_by_route, refused
from signed_in import SAME_ORIGIN, Browser, bearer, new_token, sent_by, signed_in
from sqlalchemy.exc import OperationalError

from evalsvc import access_tokens
from evalsvc.api.app import create_app
from evalsvc.api.middleware import authentication, bodies
from evalsvc.api.routes import docs
from evalsvc.api.routing import router_of
from evalsvc.config import Settings
from evalsvc.store.tokens import all_tokens, revoke_token

Start = Callable[..., App]


def test_with_the_first_token_nobody_comes_in_without(app: App, weights: Path) -> None:
    """While the service runs, and after the last token was revoked: nothing has to be started anew."""
    assert app.http.get("/v1/runs").status_code == 200
    headers = bearer(app, "submit")
    response = app.http.get("/v1/runs")
    detail = refused(response, 401, "unauthorized", "this service needs a token", "EVALSVC_TOKEN", "tokens create")
    assert response.headers["www-authenticate"] == 'Bearer realm="evalsvc"'
    assert "submit" not in detail
    refused(app.post(weights), 401, "unauthorized")
    assert app.http.get("/v1/runs", headers=headers).json()["runs"] == []
    with app.store.transaction() as session:
        revoke_token(session, "submit")
    refused(app.http.get("/v1/runs"), 401, "unauthorized")
    refused(app.http.get("/v1/runs", headers=headers), 401, "unauthorized", "the token 'submit' was revoked")


def test_every_route_but_the_open_ones_asks_for_a_token(app: App) -> None:
    """Whatever is there, and whatever is not: what exists is nobody's business."""
    bearer(app, "read")
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


def test_open_routes_tell_only_that_the_service_lives(app: App) -> None:
    headers = bearer(app, "read")
    app.coordinator.processes = 0
    assert app.http.get("/healthz").json()["status"] == "ok"
    assert app.http.get("/docs").status_code == 200
    assert refused(app.http.get("/readyz"), 503, "not_ready").endswith("send a token to see what is missing")
    refused(app.http.get("/readyz", headers=headers), 503, "not_ready", "no live worker")
    app.coordinator.processes = 1
    wrong = {"Authorization": f"Bearer {access_tokens.new_token()}"}
    assert app.http.get("/readyz").json() == app.http.get("/readyz", headers=wrong).json() == {"status": "ok"}
    assert app.http.get("/readyz", headers=headers).json()["workers"] == 1


def test_an_address_that_others_reach_is_open_only_if_that_is_asked_for(start_app: Start) -> None:
    """`serve` refuses to start so; a database that is emptied later must not open it."""
    app = start_app(host="0.0.0.0")
    refused(app.http.get("/v1/runs"), 401, "unauthorized", "needs a token")
    assert app.http.get("/healthz").status_code == 200
    app = start_app(host="0.0.0.0", insecure=True, rate_limit=0.1)
    assert [app.http.get("/v1/runs").status_code for _ in range(2)] == [200, 429], "counted by address"
    bearer(app, "read")
    refused(app.http.get("/v1/runs"), 401, "unauthorized")


def test_what_is_no_token_here(app: App) -> None:
    """Who reads the database must not come in by the hash that is kept there."""
    shown = bearer(app, "read")["Authorization"].removeprefix("Bearer ")
    with app.store.reading() as session:
        (kept,) = all_tokens(session)
    for header, words in (
        (f"Bearer {kept.sha256}", "does not know the token"),
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
    # Addresses end up in logs and histories.
    refused(app.http.get("/v1/runs", params={"token": shown}), 401, "unauthorized")


def test_wrong_tokens_are_slowed_down_and_right_ones_not(app: App) -> None:
    """A neighbour behind the same address must not be locked out by who tries there."""
    headers = bearer(app, "read")
    statuses = [app.http.get("/v1/runs").status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    response = app.http.get("/v1/runs")
    refused(response, 429, "rate_limited", "too many requests without a token", "try again in")
    assert 1 <= int(response.headers["retry-after"]) <= 6
    assert app.http.get("/v1/runs", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/openapi.json", "/sign-in", "/v1/runs"])
def test_wrong_tokens_count_wherever_a_token_is_looked_at(app: App, path: str) -> None:
    """At `/readyz`, whose answer shows whether a token is right, tokens could be tried without a limit."""
    headers, wrong = bearer(app, "read"), {"Authorization": f"Bearer evs_{'A' * 43}"}
    assert {app.http.get(path).status_code for _ in range(20)} <= ({429, 401} if path == "/v1/runs" else {200})
    statuses = [app.http.get(path, headers=wrong).status_code for _ in range(12)]
    assert 429 in statuses
    limited = app.http.get(path, headers=wrong)
    assert (limited.status_code, limited.headers["retry-after"].isdigit()) == (429, True)
    assert "too many wrong tokens came from this address" in limited.text.lower()
    assert app.http.get(path, headers=headers).status_code == 200


def test_what_changes_something_is_not_read_and_two_bodies_have_limits_of_their_own(app: App) -> None:
    needed = {route: need for route, need in needs_by_route(app.app).items() if need}
    scopes = {route: need.scope for route, need in needed.items() if need.scope}
    assert [route for route, scope in scopes.items() if (route[0] == "GET") != (scope == "read")] == []
    assert [route for route, scope in scopes.items() if route[0] == "DELETE" and scope != "admin"] == []
    limits = {route: need.body for route, need in needed.items() if need.body != bodies.MAX_BODY}
    assert limits == {("POST", "/v1/runs/{run}/metrics"): bodies.MAX_IMPORT, ("PATCH", "/v1/uploads/{sha256}"): None}


def test_a_route_without_a_scope_fails_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "_send_document", lambda _request: None)
    with pytest.raises(TypeError, match=r"mark the functions of these routes with `@needs\(SCOPE\)`: .*/openapi.json"):
        create_app(Settings())
    with pytest.raises(KeyError, match="needs"):
        router_of().get("/v1/new")(lambda: "found")


def test_scopes(app: App) -> None:
    """A route that was added without a scope needs admin by itself."""
    app.app.add_api_route("/hidden", lambda: "found", include_in_schema=False)
    tokens = {scope: bearer(app, scope) for scope in ("read", "submit", "admin")}
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


def test_a_token_that_asks_too_often_is_told_when_to_ask_again(start_app: Start) -> None:
    app = start_app(rate_limit=0.1)
    assert {app.http.get("/v1/runs").status_code for _ in range(20)} == {200}, "open: no limit on this machine"
    one, other = (bearer(app, "read", name) for name in ("one", "other"))
    asked = [app.http.get("/v1/runs", headers=one) for _ in range(3)]
    assert [response.status_code for response in asked] == [200, 429, 429]
    words = ("token one sent more than 0.1 requests a second", "try again in 10 s")
    refused(asked[1], 429, "rate_limited", *words)
    assert asked[1].headers["retry-after"] == "10"
    assert app.http.get("/v1/runs", headers=other).status_code == 200


def test_the_document_tells_of_the_door(app: App) -> None:
    """Generated clients, and tests that look for routes that let in whom they should not, go by it."""
    scopes = needs_by_route(app.app)
    for security in ([{"token": []}, {}], [{"token": []}]):
        document = app.http.get("/openapi.json").json()
        assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        operations = [(path, *each) for path, item in document["paths"].items() for each in item.items()]
        for path, method, operation in operations:
            is_open = path in ("/healthz", "/readyz")
            assert operation.get("security") == (None if is_open else security), path
            assert operation.get("x-scope") == scopes[method.upper(), path].scope
            assert ("413" in operation["responses"]) == ("requestBody" in operation)
        bearer(app, "read", str(len(security)))  # closes the door


def test_whether_there_are_tokens_is_not_known(start_app: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that has never answered: nobody is let in on the chance that there are none."""

    def away(session: object) -> list[object]:
        raise OperationalError("SELECT", {}, Exception("connection refused"))

    monkeypatch.setattr(authentication, "all_tokens", away)
    for here, settings in {True: {}, False: {"host": "0.0.0.0", "insecure": True}}.items():
        app = start_app(**settings)
        refused(app.http.get("/v1/runs"), 503, "database_unusable", "connection refused")
        assert app.http.get("/healthz").status_code == 200
        assert ("database" in app.http.get("/readyz").json()) is here, "on this machine the operator is told all"


def test_no_spelling_of_a_request_needs_less(app: App) -> None:
    """The scope is that of the route that the router takes, and no header names another one."""
    read, empty = bearer(app, "read"), {"type": "http.request", "body": b""}
    cases: list[tuple[str, str, dict[str, str], int]] = [
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
    ]
    for method, path, headers, status in cases:
        assert sent_by(app, path, [empty], read | headers, method=method)[0]["status"] == status, path


def test_the_first_of_two_tokens_counts(app: App) -> None:
    read, admin = (bearer(app, scope)["Authorization"] for scope in ("read", "admin"))
    for values, status in (((read, admin), 403), (("Bearer evs_wrong", admin), 401), ((admin, read), 404)):
        headers = [("Authorization", value) for value in values]
        assert app.http.request("DELETE", "/v1/runs/a?confirm=a", headers=headers).status_code == status


def test_no_more_of_a_body_is_read_than_the_route_takes(app: App) -> None:
    """A read takes none; a body without a length is counted as it arrives."""

    def only(pieces: int) -> Iterator[Any]:
        yield from [{"type": "http.request", "body": b" " * 100_000, "more_body": True}] * pieces
        raise AssertionError("more was read")

    headers = bearer(app, "submit") | {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    for method, path, pieces, status in (
        ("GET", "/v1/runs", 0, 200),
        ("POST", "/v1/checkpoints", 11, 413),
        ("POST", "/v1/nothing", 0, 404),
        ("POST", "/v1/prune", 0, 403),
    ):
        assert sent_by(app, path, only(pieces), headers, method=method)[0]["status"] == status, path


def test_no_socket_opens(app: App) -> None:
    sent = sent_by(app, "/v1/runs", [{"type": "websocket.connect"}], type="websocket")
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_page_leads_to_the_sign_in_and_back(app: App) -> None:
    assert app.http.get("/sign-in?next=/status").headers["location"] == "/status", "an open service asks for no token"
    assert "Sign out" not in app.http.get("/").text
    token = new_token(app, "read")
    browser = Browser(app)
    refusal = browser.get("/compare?a=x&b=y")
    assert (refusal.status_code, refusal.headers["cache-control"]) == (303, "no-store")
    assert refusal.headers["location"] == "/sign-in?next=%2Fcompare%3Fa%3Dx%26b%3Dy"
    form = browser.get(refusal.headers["location"])
    assert form.status_code == 200
    assert 'name="next" value="/compare?a=x&amp;b=y"' in form.text
    assert "no-store" in form.headers["cache-control"]
    answer = browser.sign_in(token, "/compare?a=x&b=y")
    assert (answer.status_code, answer.headers["location"]) == (303, "/compare?a=x&b=y")
    assert token not in str(answer.headers)
    for path in ("/", "/status", "/v1/runs", "/v1/status"):
        assert browser.get(path).status_code == 200, path
    assert browser.get("/sign-in?next=/status").headers["location"] == "/status", "signed in already"
    # What fetches data is refused and not led away.
    refused(app.http.get("/v1/runs"), 401, "unauthorized")
    refused(app.http.get("/panels/curve.json?run=a&metric=b"), 401, "unauthorized")
    assert app.http.get("/panels/curve.html?run=a&metric=b").status_code == 303
    wrong = {"Authorization": "Bearer evalsvc_wrong"}
    refused(app.http.get("/", headers=wrong), 401, "unauthorized", "does not know the token")


def test_a_link_from_another_site_is_followed_once_more(app: App) -> None:
    """A browser sends no strict cookie on the way from another site."""
    browser = signed_in(app, "read")
    there = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    answer = app.http.get("/runs/a?x=tokens&with=b", headers=there)
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/runs/a?x=tokens&amp;with=b">' in answer.text
    assert "sandbox" not in answer.headers["content-security-policy"], "a sandbox does not refresh"
    assert browser.get("/status").status_code == 200


def test_a_session_ends_by_signing_out_or_with_its_token(app: App) -> None:
    browser = signed_in(app, "read")
    answer = browser.post("/sign-out", {"key": browser.form_key()})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert answer.headers["clear-site-data"] == '"cache"'
    assert browser.get("/status").status_code == 303, "the old cookie is worth nothing"
    browser, other = signed_in(app, "read", "one"), signed_in(app, "read", "two")
    assert re.search(r"<span>one</span>\s*<button>Sign out", browser.get("/").text)
    with app.store.transaction() as session:
        revoke_token(session, "one")
    assert browser.get("/status").status_code == 303
    refused(browser.get("/v1/runs"), 401, "unauthorized", "the token 'one' was revoked")
    assert other.get("/status").status_code == 200


def test_wrong_tokens_are_told_and_slowed_down(app: App) -> None:
    token = new_token(app, "read")
    browser = Browser(app)
    answers = [browser.sign_in("evalsvc_wrong") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert "This service does not know the token" in answers[0].text
    assert "evalsvc_wrong" not in answers[0].text
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 6
    assert "set-cookie" not in answers[-1].headers
    assert browser.sign_in(token).status_code == 303, "the right token is not kept out by others at the address"


def test_reads_are_open_where_that_is_set(start_app: Start, weights: Path) -> None:
    app = start_app(open_reads=1)
    token = new_token(app, "submit")
    for path in ("/", "/status", "/v1/runs", "/metrics"):
        assert app.http.get(path).status_code == 200, path
    assert '<a href="/sign-in">Sign in</a>' in app.http.get("/").text
    refused(app.post(weights), 401, "unauthorized")
    refused(app.http.post("/evaluations/1/cancel", headers=SAME_ORIGIN), 401, "unauthorized")
    refused(app.http.get("/v1/runs", headers={"Host": "evil.example"}), 403, "forbidden", "only accepts localhost")
    operations = app.http.get("/openapi.json").json()["paths"]
    assert {} in operations["/v1/runs"]["get"]["security"]
    assert {} not in operations["/v1/checkpoints"]["post"]["security"]
    browser = Browser(app)
    assert browser.sign_in(token).status_code == 303
    assert "Sign out" in browser.get("/").text
