"""The documentation's site is built strictly, and asks no other host for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import DOCS, ROOT, site_pages
from generate import write_pages
from lxml import html
from programs import lacking

LOADING = {"base", "embed", "iframe", "img", "link", "object", "script", "source", "video"}
"""Elements of HTML that make a browser ask for what they name; a link that a reader clicks on is no such thing."""


def markdown_left(page: str) -> list[str]:
    root = html.document_fromstring(page)
    for element in list(root.iter("code", "pre", "script", "style")):
        element.clear(keep_tail=True)
        element.text = "…"
    return re.findall(r"^(?:[-*] |1\. |\| .*\|$|#+ |```).*", root.text_content(), re.MULTILINE)


def foreign_in_page(text: str) -> list[str]:
    root = html.document_fromstring(text)
    loading = [item for item in root.iter(*LOADING) if item.get("rel") not in ("canonical", "prev", "next")]
    addresses = [item.get(name, "") for item in loading for name in ("src", "href", "data", "srcset")]
    styles = [item.get("style", "") for item in root.iter("*")]
    styles += [item.text or "" for item in root.iter("script", "style")]
    foreign = [address for address in addresses if re.match(r"(\w+:)?//", address)]
    return foreign + [found for style in styles for found in foreign_in_style(style)]


def foreign_in_style(text: str) -> list[str]:
    return re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s;]+)""", text)


def pages_of(entry: Any) -> list[str]:
    inner = entry.values() if isinstance(entry, dict) else entry
    return [entry] if isinstance(entry, str) else [page for part in inner for page in pages_of(part)]


def test_every_page_is_in_the_navigation() -> None:
    """A page that no menu names is found by nobody."""
    navigation = pages_of(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert len(set(navigation)) == len(navigation)
    assert set(navigation) == {path.relative_to(DOCS).as_posix() for path in site_pages()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, short_process: None) -> Path:
    """The site, built from a copy: the checkout stays as it is."""
    if find_spec("zensical") is None:
        lacking("zensical", "needs zensical, of the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", folder)
    shutil.copytree(DOCS, folder / "docs")
    write_pages(folder / "docs" / "reference")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    return folder / "build" / "site"


def test_every_page_is_built(site: Path) -> None:
    written = {path.relative_to(DOCS).with_suffix("") for path in site_pages()}
    built = {path.relative_to(site) for path in site.rglob("index.html")}
    assert [path.name for path in site.rglob("*.py")] == []
    assert built == {page.parent / "index.html" if page.name == "index" else page / "index.html" for page in written}


def test_markdown_is_understood(site: Path) -> None:
    """A forge is more lenient: here a list or table needs an empty line before it, and four spaces within it. The
    generator's defaults show a fence with a second word behind the backticks as text, too."""
    left = {str(path.relative_to(site)): markdown_left(path.read_text()) for path in site.rglob("index.html")}
    assert {path: lines for path, lines in left.items() if lines} == {}


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    """The site works without a network, and tells nobody who reads it."""
    html = {str(path): foreign_in_page(path.read_text()) for path in site.rglob("*.html")}
    styles = {str(path): foreign_in_style(path.read_text()) for path in site.rglob("*.css")}
    assert html
    assert styles
    assert {path: found for path, found in (html | styles).items() if found} == {}
    # The generator's script fetches what draws such diagrams from elsewhere where a page has one.
    assert not any('class="mermaid"' in path.read_text() for path in site.rglob("*.html"))


@pytest.mark.parametrize("text", ["<p>So:\n- one\n- two</p>", "<p>a\n| a | b |\n|---|---|</p>", "<p>```sh run\nls</p>"])
def test_markdown_that_is_left_is_seen(text: str) -> None:
    assert markdown_left(text) != []
    assert markdown_left(f"<pre><code>{text}</code></pre>") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<link rel="stylesheet" href="https://fonts.example/css">', ["https://fonts.example/css"]),
        ('<script src="//cdn.example/x.js"></script>', ["//cdn.example/x.js"]),
        ("<style>@import 'https://a.example/b.css'; p{}</style>", ["https://a.example/b.css"]),
        ('<p style="background: url(http://a.example/b.png)">', ["http://a.example/b.png"]),
        ('<a href="https://arxiv.org/abs/2311.16201">the paper</a><script src="../x.js"></script>', []),
    ],
)
def test_what_is_loaded_from_another_host_is_seen(text: str, found: list[str]) -> None:
    """The test above proves nothing if it sees nothing."""
    assert foreign_in_page(text) == found
