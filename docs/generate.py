"""Write the reference pages, docs/reference/*.md, from the code, and the tables of docs/how-to/models.md.

`make docs` runs this script before it builds the site. Git ignores the reference pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from reference_pages import cli, client, errors, metrics, models, rest, settings, tasks

FOLDER = Path(__file__).parent / "reference"

PAGES: Mapping[str, Callable[[], str]] = {
    "settings": settings.page,
    "errors": errors.page,
    "metrics": metrics.page,
    "tasks": tasks.page,
    "cli": cli.page,
    "rest": rest.page,
    "client": client.page,
}
"""The function that returns a page's text, by the page's name: `settings` is docs/reference/settings.md."""


def write_pages(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (folder / f"{name}.md").write_text(page())


if __name__ == "__main__":
    write_pages(FOLDER)
    models.PAGE.write_text(models.with_tables(models.PAGE.read_text()))
