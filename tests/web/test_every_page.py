"""Every page and every panel in a real browser: a new one is tested from the day on which it is in the table.

A page is opened once, and all that is asked of it is asked of the same open page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from chromium import Visit
from dashboard_history import HOSTILE, MARKUP, RUN, Dashboard
from dashboard_pages import FAILED, page_addresses, panel_addresses
from lxml import html
from markupsafe import escape
from page_checks import animated, barriers, tab_walk, too_wide

from evalsvc.installation import pip_install
from evalsvc.web import vega

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.usefixtures("child_process")
"""Charts are drawn in processes, and the history takes seconds to write."""

ADDRESSES = [*page_addresses(), *panel_addresses("html")]

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 800}
ZOOMED = {"width": 640, "height": 400}
"""A window of 1280 × 800 at 200 %: as many pixels of style."""

AXES_ARE_LIGHT = """() => [...document.querySelectorAll(".chart svg .role-axis-label text")].every((text) => {
  const [red, green, blue] = getComputedStyle(text).fill.match(/\\d+/g).map(Number);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 150;
})"""
"""Whether charts have been drawn for a dark page."""


@pytest.fixture(scope="module", params=ADDRESSES)
def visit(request: pytest.FixtureRequest, chromium: Browser, dashboard: Dashboard) -> Iterator[Visit]:
    """A page that is open, with its charts drawn from top to bottom, for somebody who wants no motion."""
    with Visit(chromium, reduced_motion="reduce").open(dashboard.url + request.param) as visit:
        visit.draw_all()
        yield visit


def test_nothing_goes_wrong(visit: Visit, dashboard: Dashboard) -> None:
    """No error in the console, nothing that the policy forbids, no address that fails, and none of another place."""
    assert visit.failures == []
    assert visit.messages == []
    assert visit.violations == []
    assert visit.elsewhere(dashboard.url) == []


def test_nobody_is_kept_out(visit: Visit) -> None:
    assert barriers(visit.page) == []


def test_everybody_can_read_it_in_the_dark(visit: Visit) -> None:
    visit.page.emulate_media(color_scheme="dark")
    try:
        visit.page.wait_for_function(AXES_ARE_LIGHT)
        assert barriers(visit.page, "color-contrast") == []
    finally:
        visit.page.emulate_media(color_scheme="light")


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(visit: Visit) -> None:
    controls, reached, unseen = tab_walk(visit.page)
    assert reached == controls
    assert len(controls) > 5, "the head of the page alone has as many"
    assert unseen == []


@pytest.mark.parametrize("size", [PHONE, ZOOMED], ids=["phone", "zoomed to 200 %"])
def test_nothing_makes_a_page_scroll_sideways(visit: Visit, size: dict[str, int]) -> None:
    visit.page.set_viewport_size(size)
    try:
        assert too_wide(visit.page) == []
    finally:
        visit.page.set_viewport_size(DESK)


def test_no_text_of_a_submitter_is_markup(visit: Visit) -> None:
    """Prompts, completions, errors and names of metrics of the history have scripts and images in them."""
    assert visit.page.locator("img[src='x'], script:not([src]), [onerror]").count() == 0


def test_nothing_moves_for_somebody_who_wants_no_motion(visit: Visit) -> None:
    assert animated(visit.page) == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_says_as_much_without_javascript(chromium: Browser, dashboard: Dashboard, address: str) -> None:
    """Every chart is a table there, or a link to one, and no empty frame and no dead button stays in its place."""
    with Visit(chromium, java_script_enabled=False).open(dashboard.url + address) as visit:
        page = visit.page
        assert page.locator("h1").is_visible()
        assert page.locator(".chart:visible, button.copy:visible, .slider:visible").count() == 0
        for panel in page.locator(".panel").all():
            table, link = panel.locator("table").first, panel.locator("a[href*='/panels/']").first
            assert table.is_visible() if panel.locator("table").count() else link.is_visible()
        assert visit.messages == visit.failures == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_says_as_much_without_the_package_of_charts(
    dashboard: Dashboard, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vega, "PACKAGE", "no_such_package")
    page = html.fromstring(httpx.get(dashboard.url + address).raise_for_status().text)
    assert not page.xpath("//script[contains(@src, 'vega')] | //*[contains(@class, 'chart')]")
    assert not page.xpath("//a[contains(@href, '.svg?') or contains(@href, '.png?')]")
    assert page.xpath("//footer//code")[0].text == pip_install("dashboard")
    assert not page.xpath("//*[contains(@class, 'panel')]//table[ancestor::details[not(@open)]]")


def test_a_picture_says_which_package_it_needs(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "PACKAGE", "no_such_package")
    for address in (*panel_addresses("svg"), *panel_addresses("png"), "/vega/vega-0.js"):
        answer = httpx.get(dashboard.url + address)
        assert answer.status_code == 503, answer.text
        assert str(escape(pip_install("dashboard"))) in answer.text


def test_every_chart_has_its_numbers(dashboard: Dashboard) -> None:
    for address in panel_addresses("json"):
        spec = httpx.get(dashboard.url + address).raise_for_status().json()
        assert spec["datasets"]["points"], address
        assert spec["description"], address
    for address in panel_addresses("csv"):
        answer = httpx.get(dashboard.url + address).raise_for_status()
        assert len(answer.text.splitlines()) > 2, address


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (f"/runs/{RUN}", f"loss/{MARKUP}"),
        (f"/runs/{RUN}/text?prompt=1", HOSTILE),
        (f"/evaluations/{FAILED}", HOSTILE),
    ],
)
def test_texts_of_a_submitter_are_shown_as_they_are(dashboard: Dashboard, address: str, text: str) -> None:
    page = html.fromstring(httpx.get(dashboard.url + address).raise_for_status().text)
    assert text in page.find(".//main").text_content()
