"""Signing in to the dashboard: what a session shows, and when it ends."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from app_in_process import App, refused
from signed_in import SAME_ORIGIN, Browser, new_token, signed_in

from evalsvc.api.middleware import authentication
from evalsvc.store.tokens import revoke_token

Start = Callable[..., App]


@pytest.fixture(autouse=True)
def _no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)


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


def test_what_fetches_data_is_refused_and_not_led_away(app: App) -> None:
    new_token(app, "read")
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


def test_signing_out_ends_the_session(app: App) -> None:
    browser = signed_in(app, "read")
    answer = browser.post("/sign-out", {"key": browser.form_key()})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert answer.headers["clear-site-data"] == '"cache"'
    assert browser.get("/status").status_code == 303, "the old cookie is worth nothing"


def test_a_revoked_token_ends_its_sessions(app: App) -> None:
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
    assert "this service does not know the token" in answers[0].text
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
