"""Take the pictures of the dashboard that README and docs show, from the service of a demo.

    evalsvc demo                                    # prints the address of its dashboard
    python docs/screenshots.py http://127.0.0.1:8321

Needs playwright, Pillow and Chromium (Debian's package chromium, or the program that --chromium names).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from evalsvc.client import Client

FOLDER = Path(__file__).parent / "images"

SIZE = {"width": 1120, "height": 700}

COLOURS = 128
"""Colours of a picture: a third of the bytes, and no difference that a reader sees."""

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")

DRAWN = """() => [...document.querySelectorAll(".chart")].every((chart) => {
  const box = chart.getBoundingClientRect();
  return box.bottom <= 0 || box.top >= innerHeight || chart.querySelector("svg, canvas");
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


def take(browser: Browser, url: str, run: str, other: str, folder: Path) -> list[Path]:
    """Take all pictures; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with Client(url) as client:
        pages = addresses(client, run, other)
    context = browser.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
    page = context.new_page()
    taken = []
    for name, address in pages.items():
        answer = page.goto(url + address, wait_until="load")
        assert answer is not None
        if not answer.ok:
            raise RuntimeError(f"{address} answered {answer.status}; give the service of a demo")
        taken.append(_picture(page, folder / f"{name}.png"))
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
    parser.add_argument("url", help="address of the service")
    parser.add_argument("--run", default="pretrained", help="run of the pictures")
    parser.add_argument("--other", default="random-init", help="run to lay over it")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="program to drive")
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=list(OPTIONS))
        for path in take(browser, arguments.url, arguments.run, arguments.other, FOLDER):
            print(f"{path}: {path.stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
