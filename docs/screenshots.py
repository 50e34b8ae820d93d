"""Take the pictures of the dashboard's tour, which README and docs show, in light and dark.

    python docs/screenshots.py                          # evaluates the demo: two minutes on two cores
    python docs/screenshots.py --data-dir build/demo    # keeps the demo's data: seconds from the second time on
    python docs/screenshots.py http://127.0.0.1:8321    # of a service that has the demo

Needs playwright, Pillow, the asset `inception`, and Chromium (Debian's package chromium, or the program that --chromium
names).
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from evalsvc.cli.demo import RUNS, post_all, started_service, wait_all
from evalsvc.client import Client
from evalsvc.config import Settings

FOLDER = Path(__file__).parent / "images"

SIZE = {"width": 1120, "height": 700}

COLOURS = 128
"""Colours of a picture: a third of the bytes, and no difference that a reader sees."""

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")

DRAWN = """() => [...document.querySelectorAll(".chart")].every((chart) => {
  const box = chart.getBoundingClientRect();
  const away = box.bottom <= 0 || box.top >= innerHeight;  // those of the headline fill the legend too
  return (away && !chart.closest("#headline")) || chart.querySelector("svg, canvas");
}) && [...document.images].every((image) => image.complete || image.getBoundingClientRect().top > innerHeight)"""
"""Whether all that is in view is drawn."""


def addresses(client: Client, run: str, other: str) -> Mapping[str, str]:
    """Return the address of each picture's page, by the name of the picture."""
    newest = client.run(run).checkpoints[-1]
    return {
        "runs": "/",
        "run": f"/runs/{run}?with={other}&along=log",
        "images": f"/runs/{run}/images",
        "text": f"/runs/{run}/text",
        "compare": f"/compare?a={run}%40{client.run(run).checkpoints[0].step}&b={run}%40{newest.step}",
        "evaluation": f"/evaluations/{newest.evaluations[-1].id}",
    }


THEMES: Mapping[Literal["light", "dark"], str] = {"light": "", "dark": "-dark"}
"""What the name of a picture ends in."""


@contextmanager
def demo(folder: Path) -> Iterator[str]:
    """Serve the demo's runs, evaluated, from a data folder; yield the address."""
    with started_service(folder, "cpu,cpu", Settings.load().assets_path) as url:
        with Client(url) as client:
            failures = wait_all(
                client, post_all(client), lambda queue: print(f"{queue.queued + queue.running} checkpoints to go")
            )
        if failures:
            raise RuntimeError("\n".join(failures))
        yield url


def take(browser: Browser, url: str, run: str, other: str, folder: Path) -> list[Path]:
    """Take all pictures; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with Client(url) as client:
        pages = addresses(client, run, other)
    taken = []
    for theme, ending in THEMES.items():
        context = browser.new_context(viewport=SIZE, color_scheme=theme, reduced_motion="reduce")
        page = context.new_page()
        for name, address in pages.items():
            answer = page.goto(url + address, wait_until="load")
            assert answer is not None
            if not answer.ok:
                raise RuntimeError(f"{address} answered {answer.status}; give the service of a demo")
            taken.append(_picture(page, folder / f"{name}{ending}.png"))
        context.close()
    return taken


def _picture(page: Page, path: Path) -> Path:
    """Write what the browser shows, in few colours."""
    page.wait_for_function(DRAWN)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="address of a service that has the demo [one is started]")
    parser.add_argument("--data-dir", type=Path, help="data folder of the service that is started [a temporary one]")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="program to drive")
    arguments = parser.parse_args()
    if arguments.url is not None:
        _take_all(arguments.url, arguments.chromium)
        return
    with tempfile.TemporaryDirectory(prefix="evalsvc-tour-") as folder, demo(arguments.data_dir or Path(folder)) as url:
        _take_all(url, arguments.chromium)


def _take_all(url: str, chromium: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        taken = take(browser, url, *RUNS, FOLDER)
        browser.close()
    for path in taken:
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"{sum(path.stat().st_size for path in taken):,} bytes in all")


if __name__ == "__main__":
    main()
