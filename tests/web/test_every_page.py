"""Every page and every panel in a real browser: a new one is tested from the day on which it is in the table.

A page is opened once, and all that is asked of it is asked of the same open page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from chromium import Visit
from dashboard_history import LONG, OTHER, PANEL_QUERIES, PLACES, RUN, VIRTUAL, Dashboard
from lxml import html
from markupsafe import escape

from evalsvc.installation import pip_install
from evalsvc.web import vega
from evalsvc.web.page import PAGES
from evalsvc.web.panel import PANELS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.usefixtures("child_process")
"""Charts are drawn in processes, and the history takes seconds to write."""

FAILED, RUNNING = 53, 54
"""Evaluations in these states: the history is the same each time, and so are their ids."""

FURTHER: Mapping[str, Sequence[str]] = {
    "/runs/{run}": [f"/runs/{RUN}?with={OTHER}&with={VIRTUAL}&smooth=0.6&step=2000&scale=log&pin=loss/special"],
    "/runs/{run}/images": [f"/runs/{LONG}/images"],
    "/runs/{run}/text": [f"/runs/{RUN}/text?prompt=1&against={OTHER}", f"/runs/{LONG}/text"],
    "/compare": [f"/compare?a={RUN}@4000&b={OTHER}@4000", f"/compare?a={RUN}&b={OTHER}"]
    + [f"/compare?a={RUN}@0&b={OTHER}@4000&tab={tab}" for tab in ("images", "questions", "protocols")],
    "/evaluations/{evaluation}": [f"/evaluations/{FAILED}", f"/evaluations/{RUNNING}"],
}
"""Addresses of pages in more than their first state: several runs, choices made, nothing to show, a failure."""


def panel_addresses(kind: str) -> list[str]:
    """Return the address of every panel as `html`, `json`, `csv`, `svg` or `png`."""
    return [f"/panels/{name}.{kind}?{PANEL_QUERIES[name]}" for name in PANELS]


ADDRESSES = [address for pattern in PAGES for address in (pattern.format_map(PLACES), *FURTHER.get(pattern, ()))]
ADDRESSES += panel_addresses("html")

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 800}
ZOOMED = {"width": 640, "height": 400}
"""A window of 1280 × 800 at 200 %: as many pixels of style."""

AXES_ARE_LIGHT = """() => [...document.querySelectorAll(".chart svg .role-axis-label text")].every((text) => {
  const [red, green, blue] = getComputedStyle(text).fill.match(/\\d+/g).map(Number);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 150;
})"""
"""Whether charts have been drawn for a dark page."""


MOST_STOPS = 400
"""Presses of Tab after which a walk counts as one that does not end."""

CONTROLS = """
const controls = [...document.querySelectorAll(
  "a[href], button, input, select, textarea, summary, audio[controls], [contenteditable], [tabindex]"
)].filter((element) => element.tabIndex >= 0 && !element.disabled && element.type !== "hidden"
  && !(element.type === "radio" && !element.checked)  // a group is one stop
  && element.checkVisibility({ visibilityProperty: true }));
const name = (element) => `${element.tagName.toLowerCase()} ${
  (element.getAttribute("aria-label") || element.textContent.trim() || element.name || element.id).slice(0, 40)}`;
"""
"""The controls of a page that a person can see, in the order of the page, and their names in messages."""

FOLLOW_FOCUS = f"""() => {{
  {CONTROLS}
  window.controls = controls.map(name);
  window.stops = [];
  window.over = false;
  document.addEventListener("focusin", ({{ target }}) => {{
    window.over ||= window.stops.some(([index]) => index === 0) && controls.indexOf(target) === 0;
    if (window.over) return;
    const style = getComputedStyle(target);
    const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
    window.stops.push([controls.indexOf(target), name(target), ring || style.boxShadow !== "none"]);
  }});
  document.activeElement?.blur();
}}"""

TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const wide = [...document.body.querySelectorAll("*")].filter((element) => {
    if (element.getBoundingClientRect().right <= width + 0.5) return false;
    for (let above = element.parentElement; above; above = above.parentElement)
      if (["auto", "scroll", "hidden"].includes(getComputedStyle(above).overflowX)) return false;
    return true;
  });
  return [`${document.documentElement.scrollWidth} px`, ...wide.slice(0, 5).map((element) =>
    `${element.tagName.toLowerCase()}.${element.className} ${element.textContent.trim().slice(0, 40)}`)];
}"""


CUT_OFF = """() => [...document.querySelectorAll("main :is(th, td)")].filter((cell) => {
  if (!cell.checkVisibility() || !cell.textContent.trim() || cell.closest(".wall, thead")) return false;
  const frame = cell.closest(".scroll")?.getBoundingClientRect().right ?? innerWidth;
  return cell.getBoundingClientRect().right > Math.min(frame, innerWidth) + 1;
}).map((cell) => `${cell.closest(".scroll")?.ariaLabel}: ${cell.textContent.trim().slice(0, 40)}`)"""
"""Cells of tables that somebody sees only after scrolling sideways. The wall of images has as many columns as steps."""

ANIMATED = """() => [...document.querySelectorAll("*")].filter((element) => {
  const style = getComputedStyle(element);
  const seconds = [...style.transitionDuration.split(","), ...style.animationDuration.split(",")];
  return seconds.some((each) => parseFloat(each) > 0) || style.scrollBehavior === "smooth";
}).map((element) => element.outerHTML.slice(0, 80))"""


def barriers(page: Page, *rules: str) -> list[str]:
    """Return what axe finds in a page by rules, or by all that it has on: what keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    response: dict[str, Any] = Axe().run(page, options=options).response
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for rule in response["violations"]
        for node in rule["nodes"]
        if node["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module", params=ADDRESSES)
def visit(request: pytest.FixtureRequest, chromium: Browser, dashboard: Dashboard) -> Iterator[Visit]:
    """A page that is open, with its charts drawn from top to bottom, for somebody who wants no motion."""
    with Visit(chromium, reduced_motion="reduce").open(dashboard.url + request.param) as visit:
        visit.draw_all()
        yield visit


def test_nothing_goes_wrong(visit: Visit, dashboard: Dashboard) -> None:
    """No error in the console, nothing that the policy forbids, no address that fails, and none of another place.

    Prompts, completions, errors and names of metrics of the history have scripts and images in them, which are text.
    """
    assert visit.failures == visit.messages == visit.violations == visit.elsewhere(dashboard.url) == []
    assert visit.page.locator("img[src='x'], script:not([src]), [onerror]").count() == 0


def test_nobody_is_kept_out_and_nothing_moves_for_somebody_who_wants_no_motion(visit: Visit) -> None:
    assert barriers(visit.page) == []
    assert visit.page.evaluate(ANIMATED) == []


def test_everybody_can_read_it_in_the_dark(visit: Visit) -> None:
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function(AXES_ARE_LIGHT)
    found = barriers(visit.page, "color-contrast")
    visit.page.emulate_media(color_scheme="light")
    assert found == []


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(visit: Visit) -> None:
    visit.page.evaluate(FOLLOW_FOCUS)
    controls: list[str] = visit.page.evaluate("() => window.controls")
    for _ in range(MOST_STOPS):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("() => window.over || document.activeElement === document.body"):
            break
    stops: list[tuple[int, str, bool]] = visit.page.evaluate("() => window.stops")
    assert [controls[index] for index, _, _ in stops if index >= 0] == controls
    assert len(controls) > 5, "the head of the page alone has as many"
    assert [name for _, name, seen in stops if not seen] == [], "whose focus is unseen"


@pytest.mark.parametrize("size", [PHONE, ZOOMED], ids=["phone", "zoomed to 200 %"])
def test_nothing_makes_a_page_scroll_sideways(visit: Visit, size: dict[str, int]) -> None:
    visit.page.set_viewport_size(size)
    found = visit.page.evaluate(TOO_WIDE)
    visit.page.set_viewport_size(DESK)
    assert found == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_every_number_and_verdict_is_in_view_without_scrolling_sideways(visit: Visit, size: dict[str, int]) -> None:
    visit.page.set_viewport_size(size)
    found = visit.page.evaluate(CUT_OFF)
    visit.page.set_viewport_size(DESK)
    assert found == []


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
    page = html.fromstring(httpx2.get(dashboard.url + address).raise_for_status().text)
    assert not page.xpath("//script[contains(@src, 'vega')] | //*[contains(@class, 'chart')]")
    assert not page.xpath("//a[contains(@href, '.svg?') or contains(@href, '.png?')]")
    assert page.xpath("//footer//code")[0].text == pip_install("dashboard")
    assert not page.xpath("//*[contains(@class, 'panel')]//table[ancestor::details[not(@open)]]")


def test_a_picture_says_which_package_it_needs(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "PACKAGE", "no_such_package")
    for address in (*panel_addresses("svg"), *panel_addresses("png"), "/vega/vega-0.js"):
        answer = httpx2.get(dashboard.url + address)
        assert answer.status_code == 503, answer.text
        assert str(escape(pip_install("dashboard"))) in answer.text


def test_every_chart_has_its_numbers(dashboard: Dashboard) -> None:
    for address in panel_addresses("json"):
        spec = httpx2.get(dashboard.url + address).raise_for_status().json()
        assert spec["datasets"]["points"], address
        assert spec["description"], address
    for address in panel_addresses("csv"):
        answer = httpx2.get(dashboard.url + address).raise_for_status()
        assert len(answer.text.splitlines()) > 2, address
