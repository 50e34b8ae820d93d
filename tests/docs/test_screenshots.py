"""The pictures of the dashboard: each is shown somewhere, is small, and can be taken again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dashboard_history import OTHER, RUN, dashboard_on_port
from doc_blocks import DOCS, README, pages, prose
from PIL import Image

from evalsvc.client import Client

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = {"runs", "run", "images", "text", "compare", "evaluation"}

MOST_BYTES = 120_000


def shown(page: Path) -> set[Path]:
    """Return the pictures of a page."""
    return {(page.parent / target).resolve() for target in re.findall(r"!\[[^]]+\]\(([^)]+)\)", prose(page))}


def test_every_picture_is_there_and_shown() -> None:
    taken, charts = (set((DOCS / "images").rglob(f"*.{kind}")) for kind in ("png", "svg"))
    assert {path.stem for path in taken} == NAMES
    assert set.union(*map(shown, pages())) == taken | charts
    assert shown(README) <= taken
    for path in taken:
        assert path.stat().st_size < MOST_BYTES, path
        with Image.open(path) as image:
            assert image.size == (1120, 700)


@pytest.mark.usefixtures("child_process")
def test_pictures_are_taken_by_the_script(chromium: Browser, tmp_path: Path) -> None:
    import screenshots  # needs playwright

    with dashboard_on_port(tmp_path / "data") as dashboard:
        with Client(dashboard.url) as client:
            assert screenshots.addresses(client, RUN, OTHER).keys() == NAMES
        taken = screenshots.take(chromium, dashboard.url, RUN, OTHER, tmp_path / "images")
    assert {path.stem for path in taken} == NAMES
    assert all(0 < path.stat().st_size < MOST_BYTES for path in taken)
