"""What people come for, in a real browser: the keys from the sign-in to a figure, and the clicks to an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from chromium import Visit
from dashboard_history import OTHER, RUN, Dashboard

from evalsvc.store.tokens import create_token

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytestmark = pytest.mark.usefixtures("child_process")

MOST_KEYS = 90
"""Presses of keys from the sign-in to a file, without the letters of the token."""

FOCUSED = """() => {
  const focused = document.activeElement;
  return `${focused.tagName} ${focused.getAttribute("aria-label") || focused.textContent.trim()}`;
}"""


@pytest.fixture(scope="module")
def token(dashboard: Dashboard) -> str:
    with dashboard.state.store.transaction() as session:
        return create_token(session, "reader", "read")


@pytest.fixture
def visit(chromium: Browser, dashboard: Dashboard, token: str) -> Iterator[Visit]:
    """The sign-in, with the token in its field."""
    with Visit(chromium) as visit:
        visit.open(dashboard.url)
        visit.page.keyboard.type(token)
        yield visit
        assert [message for message in visit.messages if "401" not in message] == visit.violations == []


def test_the_keyboard_leads_from_the_sign_in_to_a_chart_as_a_file(visit: Visit) -> None:
    keys, page = 1, visit.page
    page.keyboard.press("Enter")

    def go_to(control: str, key: str) -> None:
        nonlocal keys
        while not page.evaluate(FOCUSED).startswith(control):
            page.keyboard.press("Tab")
            keys += 1
            assert keys < MOST_KEYS, f"{control!r} is not reached; the focus is on {page.evaluate(FOCUSED)!r}"
        page.keyboard.press(key)
        keys += 1

    page.get_by_role("heading", name="Runs").wait_for()
    for run in (RUN, OTHER):
        go_to(f"INPUT choose {run}", "Space")
    go_to("A Compare", "Enter")
    page.get_by_role("heading", name=f"{OTHER} against {RUN}").wait_for()
    with page.expect_download() as download:
        go_to("A PDF", "Enter")
    assert re.fullmatch(rf"{OTHER}_minus_{RUN}_.+\.pdf", download.value.suggested_filename)
    assert download.value.path().read_bytes().startswith(b"%PDF")


def two_steps(visit: Visit, click: Callable[[Locator], None]) -> None:
    click(visit.page.get_by_label("A: step 1,000"))
    click(visit.page.get_by_label("B: step 2,000"))
    click(visit.page.get_by_role("button", name="Compare B with A"))
    visit.page.get_by_role("heading", name=f"{RUN}@2000 against {RUN}@1000").wait_for()
    assert visit.page.locator(".answer").first.bounding_box()["y"] < 400


def best_steps(visit: Visit, click: Callable[[Locator], None]) -> None:
    for run in (RUN, OTHER):
        click(visit.page.get_by_label(f"choose {run}", exact=True))
    click(visit.page.locator("#select").get_by_role("link", name="Compare"))
    click(visit.page.get_by_role("link", name="Compare their best steps"))
    visit.page.get_by_role("heading", name=re.compile(rf"^{OTHER}@\d+ against {RUN}@\d+$")).wait_for()


def changed_image(visit: Visit, click: Callable[[Locator], None]) -> None:
    click(visit.page.get_by_text("Most changed"))
    visit.page.wait_for_url("**order=changed*")


def protocol(visit: Visit, click: Callable[[Locator], None]) -> None:
    click(visit.page.get_by_role("link", name=RUN, exact=True))
    click(visit.page.locator("#headline .panel").first.get_by_role("link", name="Protocol"))
    visit.page.get_by_role("heading", name=re.compile("^How .+ was measured$")).wait_for()


def figure(visit: Visit, click: Callable[[Locator], None]) -> None:
    with visit.page.expect_download() as download:
        click(visit.page.locator("#headline .panel").first.get_by_role("link", name="PDF", exact=True))
    assert re.fullmatch(rf"{RUN}_.+\.pdf", download.value.suggested_filename)


@pytest.mark.parametrize(
    ("path", "answer", "most"),
    [
        (f"/runs/{RUN}", two_steps, 3),
        ("/", best_steps, 4),
        (f"/runs/{RUN}/images", changed_image, 1),
        ("/", protocol, 2),
        (f"/runs/{RUN}", figure, 1),
    ],
)
def test_a_question_takes_few_clicks(
    visit: Visit, dashboard: Dashboard, path: str, answer: Callable[..., None], most: int
) -> None:
    """Twice as many at least, where there was a way at all: 7, none, 2, 4 and 3."""
    clicks = 0

    def click(control: Locator) -> None:
        nonlocal clicks
        control.click()
        clicks += 1

    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("heading", name="Runs").wait_for()
    visit.open(dashboard.url + path)
    answer(visit, click)
    assert clicks <= most
