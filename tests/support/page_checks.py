"""What a page in a browser is checked for: accessibility, the walk of the keyboard, and its width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

SERIOUS = ("serious", "critical")

MOST_STOPS = 400
"""Presses of Tab after which a walk counts as one that does not end."""

CONTROLS = """
const controls = [...document.querySelectorAll(
  "a[href], button, input, select, textarea, summary, audio[controls], [contenteditable], [tabindex]"
)].filter((element) => element.tabIndex >= 0 && !element.disabled && element.type !== "hidden"
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


def barriers(page: Page, *rules: str) -> list[str]:
    """Return what axe finds in a page: barriers for people with a screen reader, a keyboard, or weak eyes.

    Args:
        page: the page.
        rules: names of axe's rules; by default, all that axe has on.
    """
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    response: dict[str, Any] = Axe().run(page, options=options).response
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for rule in response["violations"]
        for node in rule["nodes"]
        if node["impact"] in SERIOUS
    ]


def tab_walk(page: Page) -> tuple[list[str], list[str], list[str]]:
    """Press Tab from the begin of a page to its end.

    Returns:
        The names of the controls in the order of the page, those that Tab reached in the order in which it did, and
        those whose focus nobody sees.
    """
    page.evaluate(FOLLOW_FOCUS)
    controls: list[str] = page.evaluate("() => window.controls")
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        if page.evaluate("() => window.over || document.activeElement === document.body"):
            break
    stops: list[tuple[int, str, bool]] = page.evaluate("() => window.stops")
    reached = [controls[index] for index, _, _ in stops if index >= 0]
    return controls, reached, [name for _, name, seen in stops if not seen]


def too_wide(page: Page) -> list[str]:
    """Return what makes a page scroll sideways; empty if it does not."""
    found: list[str] = page.evaluate(TOO_WIDE)
    return found


def animated(page: Page) -> list[str]:
    """Return the elements of a page that move or fade."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((element) => {
          const style = getComputedStyle(element);
          const seconds = [...style.transitionDuration.split(","), ...style.animationDuration.split(",")];
          return seconds.some((each) => parseFloat(each) > 0) || style.scrollBehavior === "smooth";
        }).map((element) => element.outerHTML.slice(0, 80))"""
    )
    return found
