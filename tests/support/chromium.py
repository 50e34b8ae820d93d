"""Debian's Chromium, driven by playwright, and visits of pages that are watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from programs import find_program, lacking

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
"""Tests run as root, in containers without a card and without a network."""

TIMEOUT = 20_000
"""Milliseconds that a page may take for anything: ten times what a busy machine needs."""

HEAR_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""


@contextmanager
def started_chromium() -> Iterator[Browser]:
    """Start Chromium for tests, or skip (see `programs.lacking`) where it or playwright is missing."""
    for package in ("playwright", "axe_playwright_python"):
        if find_spec(package) is None:
            lacking("chromium", f"needs {package}, of the extra `browser-test`")
    path = find_program("chromium", "Debian's package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


class Visit:
    """A page in a browser profile of its own, with everything that went wrong while it was open."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.context.set_default_timeout(TIMEOUT)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        """Errors and warnings of the console, and errors that nothing caught."""
        self.requests: list[str] = []
        """Addresses that the page asked for."""
        self.failures: list[str] = []
        """Requests without an answer, and answers that are errors."""
        self.page.add_init_script(HEAR_VIOLATIONS)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.failures.append(f"{request.url}: {request.failure}"))
        self.page.on("response", self._judge)

    def open(self, url: str) -> Visit:
        self.page.goto(url, wait_until="load")
        self.drawn()
        return self

    def drawn(self) -> None:
        """Wait until every chart in the viewport has its picture. Without JavaScript there is nothing to wait for."""
        if self.page.evaluate("() => Boolean(window.vegaEmbed)") is True:
            self.page.wait_for_function(CHARTS_IN_VIEW_ARE_DRAWN)

    def draw_all(self) -> None:
        """Open all sections, and scroll to each chart."""
        self.page.evaluate(
            "() => document.querySelectorAll('#rest > details').forEach((section) => section.open = true)"
        )
        if self.page.evaluate("() => Boolean(window.vegaEmbed)") is True:
            for chart in self.page.locator(".chart").all():
                chart.scroll_into_view_if_needed()
                self.drawn()
            self.page.evaluate("() => scrollTo(0, 0)")

    @property
    def violations(self) -> list[str]:
        found: list[str] = self.page.evaluate("() => window.violations")
        return found

    def elsewhere(self, url: str) -> list[str]:
        """Return the requests that left the origin of a URL. Data that a page holds itself is no request."""
        own = urlsplit(url)[:2]
        return [asked for asked in self.requests if urlsplit(asked)[:2] != own and urlsplit(asked)[0] != "data"]

    def close(self) -> None:
        self.context.close()

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.messages.append(f"{message.type}: {message.text} {message.location}")

    def _judge(self, response: Any) -> None:
        if response.status >= 400:
            self.failures.append(f"{response.url}: {response.status}")


CHARTS_IN_VIEW_ARE_DRAWN = """() => [...document.querySelectorAll(".chart")].every((chart) => {
  const box = chart.getBoundingClientRect();
  const visible = box.bottom > 0 && box.top < innerHeight && box.width > 0 && !chart.closest("details:not([open])");
  return !visible || chart.querySelector("svg, canvas") || chart.textContent.trim();
})"""
