"""Write the reference pages, docs/reference/*.md, from the code.

`python docs/generate.py` writes the pages that differ from the code. With `--check` the script writes nothing, names
those pages, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from reference_pages import cli, client, errors, metrics, rest, settings, tasks

FOLDER = Path(__file__).parent / "reference"

MARK = "<!-- Generated from the code by `python docs/generate.py`. Do not edit this page. -->"
"""The first line of each page."""

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


def text_of(name: str) -> str:
    """Return a page as its file holds it."""
    return f"{MARK}\n\n{PAGES[name]()}"


def path_of(name: str) -> Path:
    """Return the file of a page."""
    return FOLDER / f"{name}.md"


def outdated_pages() -> list[str]:
    """Return the names of the pages whose files are missing or differ from the code."""
    return [name for name in PAGES if not path_of(name).is_file() or path_of(name).read_text() != text_of(name)]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the code.")
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 if a page is out of date.")
    check = parser.parse_args().check
    outdated = outdated_pages()
    for name in outdated:
        if check:
            print(f"{path_of(name)} is out of date; run `python docs/generate.py`")
        else:
            FOLDER.mkdir(exist_ok=True)
            path_of(name).write_text(text_of(name))
            print(f"wrote {path_of(name)}")
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
