"""An address of every page and panel on the history of `dashboard_history`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dashboard_history import LONG, OTHER, RUN, VIRTUAL

from evalsvc.spec.protocol import Protocol
from evalsvc.web.page import PAGES
from evalsvc.web.panel import PANELS

PLACES = {"run": RUN, "evaluation": "1", "protocol": Protocol({"limit": 1}).id}
"""Values for the path of a page."""

FAILED, RUNNING = 53, 54
"""Evaluations in these states: the history is the same each time, and so are their ids."""

FURTHER: Mapping[str, Sequence[str]] = {
    "/runs/{run}": [f"/runs/{RUN}?with={OTHER}&with={VIRTUAL}&smooth=0.6&step=2000&scale=log"],
    "/runs/{run}/images": [f"/runs/{LONG}/images"],
    "/runs/{run}/text": [f"/runs/{RUN}/text?prompt=1&against={OTHER}", f"/runs/{LONG}/text"],
    "/compare": [f"/compare?a={RUN}@4000&b={OTHER}@4000", f"/compare?a={RUN}&b={OTHER}"],
    "/evaluations/{evaluation}": [f"/evaluations/{FAILED}", f"/evaluations/{RUNNING}"],
}
"""Addresses of pages in more than their first state: several runs, choices made, nothing to show, a failure."""

PANEL_QUERIES: Mapping[str, str] = {
    "curve": f"run={RUN}&run={OTHER}&metric=loss/text&smooth=0.6",
    "difference": f"a={RUN}&b={OTHER}&metric=loss/text",
    "loss_map": "evaluation=1&task=loss-0",
    "contrasts": f"a={RUN}%404000&b={OTHER}%404000",
    "origin": f"run={RUN}&metric=loss/text",
}
"""A query of each panel."""

TABLES_ALONE = {"origin"}
"""Panels that have a table and no chart."""


def page_addresses() -> list[str]:
    """Return the addresses of every page: each in the state in which it opens, some in others.

    A new page is among them by its pattern alone, if `PLACES` has the parts of its path.
    """
    return [address for pattern in PAGES for address in (pattern.format_map(PLACES), *FURTHER.get(pattern, ()))]


def panel_addresses(kind: str) -> list[str]:
    """Return the address of every panel as `html`, `json`, `csv`, `svg` or `png`.

    Raises:
        KeyError: a new panel has no query in `PANEL_QUERIES` yet.
    """
    names = [name for name in PANELS if kind in ("html", "csv") or name not in TABLES_ALONE]
    return [f"/panels/{name}.{kind}?{PANEL_QUERIES[name]}" for name in names]
