"""Signing in, the forms of an evaluation, and its events, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from app_in_process import InlineCoordinator, app_on_port
from chromium import Visit
from queue_steps import enter, submission, suite

from evalsvc.access_tokens import TokenScope
from evalsvc.api.middleware import authentication
from evalsvc.api.state import State
from evalsvc.store.tokens import create_token, revoke_token

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ANSWER = 10_000
"""Milliseconds that the page has to show what happened; the events come after half a second."""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, State]]:
    """A service whose evaluation 1 waits."""
    monkeypatch.setattr(authentication, "LIFETIME", -1.0)
    with app_on_port(tmp_path / "data") as (url, state):
        enter(state.store, submission(), suite(tasks=2))
        yield url, state


def token(state: State, scope: TokenScope = "submit") -> str:
    with state.store.transaction() as session:
        return create_token(session, scope, scope)


def sign_in(visit: Visit, shown: str) -> None:
    visit.page.get_by_label("Token").fill(shown)
    visit.page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize("java_script", [True, False])
def test_sign_in_act_and_sign_out(chromium: Browser, service: tuple[str, State], java_script: bool) -> None:
    url, state = service
    shown = token(state)
    with Visit(chromium, java_script_enabled=java_script) as visit:
        visit.page.goto(f"{url}/evaluations/1")
        assert visit.page.url == f"{url}/sign-in?next=%2Fevaluations%2F1"
        sign_in(visit, "evalsvc_wrong")
        assert "does not know the token" in visit.page.get_by_role("alert").inner_text()
        sign_in(visit, shown)
        visit.page.wait_for_url(f"{url}/evaluations/1")
        (cookie,) = visit.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
        assert shown not in cookie["value"]
        visit.page.get_by_role("button", name="Cancel").click()
        visit.page.get_by_text("cancelled", exact=True).first.wait_for()
        visit.page.get_by_role("button", name="Retry").click()
        visit.page.get_by_role("button", name="Cancel").wait_for()
        visit.page.get_by_role("button", name="Sign out").click()
        visit.page.wait_for_url(f"{url}/sign-in")
        visit.page.goto(f"{url}/evaluations/1")
        assert "/sign-in" in visit.page.url
        assert [message for message in visit.messages if "401" not in message] == []


def test_a_link_of_another_site_finds_the_session(chromium: Browser, service: tuple[str, State]) -> None:
    """The first request has no strict cookie; without a second one, each link in a chat would ask for the token."""
    url, state = service
    shown = token(state, "read")
    with Visit(chromium) as visit:
        visit.page.goto(f"{url}/status")
        sign_in(visit, shown)
        visit.page.wait_for_url(f"{url}/status")
        visit.page.route("http://chat.example/", lambda route: route.fulfill(body=f'<a href="{url}/compare?a=x">x</a>'))
        visit.page.goto("http://chat.example/")
        visit.page.get_by_role("link").click()
        visit.page.wait_for_url(f"{url}/compare?a=x")
        visit.page.get_by_role("heading", name="Compare").wait_for()
        assert visit.violations == []


def test_the_forms_of_another_site_are_refused(chromium: Browser, service: tuple[str, State]) -> None:
    """With the session in the browser, and no other help."""
    url, state = service
    shown = token(state)
    form = f'<form method="post" action="{url}/evaluations/1/cancel"><button>Win</button></form>'
    with Visit(chromium) as visit:
        visit.page.goto(f"{url}/status")
        sign_in(visit, shown)
        visit.page.wait_for_url(f"{url}/status")
        visit.page.route("http://evil.example/", lambda route: route.fulfill(body=form, content_type="text/html"))
        visit.page.goto("http://evil.example/")
        with visit.page.expect_navigation() as navigation:
            visit.page.get_by_role("button").click()
        response = navigation.value
        assert response is not None
        assert response.status in (401, 403)
        visit.page.goto(f"{url}/evaluations/1")
        assert visit.page.get_by_role("button", name="Cancel").count() == 1


def test_a_page_shows_progress_and_results_by_events(chromium: Browser, service: tuple[str, State]) -> None:
    url, state = service
    assert isinstance(state.coordinator, InlineCoordinator)
    with Visit(chromium) as visit:
        visit.page.goto(f"{url}/evaluations/1")
        summary = visit.page.locator("details summary").last
        summary.click()
        visit.page.evaluate("window.scrollTo(0, 200)")
        before = visit.page.evaluate("[performance.timeOrigin, scrollY]")
        state.coordinator.step()
        state.coordinator.step()
        visit.page.locator("progress[value='4'][max='8']").wait_for(timeout=ANSWER)
        state.coordinator.work()
        visit.page.get_by_text("succeeded", exact=True).first.wait_for(timeout=ANSWER)
        visit.page.get_by_role("button", name="Evaluate again").wait_for(timeout=ANSWER)
        assert visit.page.locator("th", has_text=re.compile("^loss/text$")).count() == 2
        assert visit.page.evaluate("[performance.timeOrigin, scrollY]") == before, "no reload, and the same place"
        assert visit.page.locator("details[open]").count() == 1
        assert visit.messages == []
        assert visit.violations == []


def test_a_page_whose_session_has_ended_leads_to_the_sign_in(chromium: Browser, service: tuple[str, State]) -> None:
    """A wall display would else show old values for ever."""
    url, state = service
    shown = token(state, "read")
    with Visit(chromium) as visit:
        visit.page.goto(f"{url}/status")
        sign_in(visit, shown)
        visit.page.wait_for_url(f"{url}/status")
        with state.store.transaction() as session:
            revoke_token(session, "read")
        visit.page.wait_for_url(re.compile("/sign-in"), timeout=ANSWER)
