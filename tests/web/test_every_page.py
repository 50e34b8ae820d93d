"""Every page and every panel in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chromium import Visit
from dashboard_history import RUN, Dashboard

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_a_run_is_drawn(chromium: Browser, dashboard: Dashboard) -> None:
    with Visit(chromium).open(f"{dashboard.url}/runs/{RUN}") as visit:
        assert visit.failures == []
        assert visit.page.locator(".chart svg, .chart canvas").count() > 0
