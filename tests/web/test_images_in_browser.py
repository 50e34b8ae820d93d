"""The image wall in a real browser: the slider over steps, a sample at full size, and the wipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from chromium import Visit
from dashboard_history import OTHER, RUN, Dashboard

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.usefixtures("child_process")
"""The browser is a process."""

WALL = f"/runs/{RUN}/images"


def test_the_slider_shows_one_step_or_says_that_it_has_no_images(chromium: Browser, dashboard: Dashboard) -> None:
    with Visit(chromium).open(f"{dashboard.url}{WALL}?with={OTHER}") as visit:
        page = visit.page
        page.locator("#wall-step").focus()
        page.keyboard.press("Home")
        page.wait_for_function("() => document.querySelectorAll('#wall thead th').length === 3")
        assert page.url.endswith(f"{WALL}?with={OTHER}&at=0")
        page.keyboard.press("End")  # a step whose evaluation has not ended
        page.locator("#wall .warning").first.wait_for()
        assert page.locator("#wall-step-shown").text_content() == "6,000: no images"
        assert page.locator("#wall img").count() == 0
        assert visit.messages == visit.violations == []


def test_two_checkpoints_are_laid_over_each_other_by_keyboard(chromium: Browser, dashboard: Dashboard) -> None:
    with Visit(chromium).open(dashboard.url + WALL) as visit:
        page = visit.page
        page.goto(dashboard.url + WALL)  # a page that has not changed works as the first time
        page.locator("a.sample").first.focus()
        page.keyboard.press("Enter")
        place = page.locator("#wipe")
        assert "a red seven" in (place.text_content() or "")
        place.locator("select").select_option(index=2)
        wipe = place.locator("input[type=range]")
        wipe.focus()
        before = place.locator("img").nth(1).evaluate("(image) => image.style.clipPath")
        page.keyboard.press("ArrowRight")
        after = place.locator("img").nth(1).evaluate("(image) => image.style.clipPath")
        assert (before, after) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 49%)")
        assert "Same prompt, seed and parameters." in (place.text_content() or "")
        page.keyboard.press("Escape")
        assert not place.evaluate("(dialog) => dialog.open")
        assert visit.messages == visit.violations == []
