"""A copy of the pages as files, which a browser opens from a disk and any host of files serves.

The pages are those of the service, with three changes: links lead to files next to the page, charts have their data in
the page, and forms are gone. A browser loads neither modules nor JSON from a disk, so one classic script has all that
the pages run.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from evalsvc.client import Client
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.files.atomic import write_whole
from evalsvc.web import vega
from evalsvc.web.page import STATIC, Content, Page, Surroundings, html_of, page_class
from evalsvc.web.panel import panel_class
from evalsvc.web.shown import segment

MODULES = ("charts.js", "live.js", "slider.js", "images.js", "main.js")
"""Modules of the pages, each after those that it imports."""

_ATTRIBUTE = re.compile(r'\b(href|src|data-spec)="(/[^"]*)"')

_FORM = re.compile(r"<form\b.*?</form>", re.DOTALL)

_ENDINGS = {"image/png": "png", "text/csv": "csv", "text/plain": "txt", "application/jsonl": "jsonl"}
"""Endings of artifacts' files by media type; other artifacts are left out."""


@dataclass
class Site:
    """Files of a copy, by the addresses that they stand for."""

    client: Client
    folder: Path
    vega: str | None
    pages: dict[str, str] = field(default_factory=dict)
    """Names of the pages' files, by path."""
    bytes: int = 0
    """Size of all files that were written."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file below the folder of the site."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        self.bytes += len(content)


def export_site(client: Client, url: str, runs: Sequence[str], folder: Path, report: Callable[[str], None]) -> int:
    """Write the pages of some runs into a folder; return the size of the files in bytes.

    Args:
        client: the service.
        url: address of the service, for the lines to copy.
        runs: names of the runs.
        folder: a folder that is empty or does not exist.
        report: called with the path of each page before the page is written.

    Raises:
        InvalidRequest: the folder has files.
        UnknownName: there is no such run.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InvalidRequest(f"--output {folder} has files; give a folder that is empty or does not exist")
    for run in runs:
        client.run(run)
    site = Site(client, folder, vega.script_name() if vega.is_installed() else None)
    site.pages = dict(_page_names(client, runs))
    if site.vega is not None:
        made = vega.script(folder / "static")
        site.bytes += made.stat().st_size
    for name in ("style.css", "icon.svg"):
        site.write(f"static/{name}", (STATIC / name).read_bytes())
    site.write("static/site.js", classic_script().encode())
    for path, name in site.pages.items():
        report(path)
        _write_page(site, url, path, name, runs)
    return site.bytes


def classic_script() -> str:
    """Return all modules of the pages as one script that is no module."""
    parts = []
    for name in MODULES:
        text = (STATIC / name).read_text()
        text = re.sub(r"^import .*?;\n", "", text, flags=re.MULTILINE)
        parts.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"


def _page_names(client: Client, runs: Sequence[str]) -> Mapping[str, str]:
    """Return the names of the pages' files by path."""
    names = {"/": "index.html"}
    for run in runs:
        names[f"/runs/{segment(run)}"] = f"runs/{run}.html"
        names[f"/runs/{segment(run)}/images"] = f"runs/{run}.images.html"
        names[f"/runs/{segment(run)}/text"] = f"runs/{run}.text.html"
        for protocol in client.protocols(run):
            names[f"/protocols/{protocol.id}"] = f"protocols/{protocol.id}.html"
        for checkpoint in client.run(run).checkpoints:
            for evaluation in checkpoint.evaluations:
                names[f"/evaluations/{evaluation.id}"] = f"evaluations/{evaluation.id}.html"
    return names


def _write_page(site: Site, url: str, path: str, name: str, runs: Sequence[str]) -> None:
    page = _page_at(path, runs)
    content = page.content(site.client)
    around = Surroundings(f"/static/{site.vega}" if site.vega else None, url, is_copy=True)
    text = html_of(page.template, Content(content.title, content.values), around)
    text = _FORM.sub("", text)
    specs: dict[str, str] = {}

    def local(match: re.Match[str]) -> str:
        attribute, address = match[1], html.unescape(match[2])
        if attribute == "data-spec":
            specs[address] = _spec(site, address)
            return match[0]
        target = _file_of(site, address)
        if target is None:
            return ""
        return f'{attribute}="{html.escape(os.path.relpath(target, os.path.dirname(name) or "."))}"'

    text = _ATTRIBUTE.sub(local, text)
    data = "".join(
        f'<script type="application/json" data-spec="{html.escape(address)}">{spec}</script>\n'
        for address, spec in specs.items()
    )
    site.write(name, text.replace("</body>", f"{data}</body>").encode())


def _page_at(path: str, runs: Sequence[str]) -> Page:
    """Return the page at a path of `_page_names`."""
    parts = [unquote(part) for part in path.strip("/").split("/") if part]
    match parts:
        case []:
            return page_class("/").parse([("only", run) for run in runs])
        case ["runs", run]:
            return page_class("/runs/{run}").parse([("run", run)])
        case ["runs", run, view]:
            return page_class(f"/runs/{{run}}/{view}").parse([("run", run)])
        case ["protocols", protocol]:
            return page_class("/protocols/{protocol}").parse([("protocol", protocol)])
        case _:
            return page_class("/evaluations/{evaluation}").parse([("evaluation", parts[1])])


def _file_of(site: Site, address: str) -> str | None:
    """Return the file that stands for an address, written if it was not; None if the copy has no such file."""
    path, _, query = address.partition("?")
    if path in site.pages and not query:
        return site.pages[path]
    if path.startswith("/static/"):
        return path[1:]
    if path.startswith("/v1/artifacts/"):
        return _artifact(site, int(path.rpartition("/")[2]))
    if path.startswith("/panels/") and path.endswith((".csv", ".svg", ".png")):
        return _panel_file(site, path.rpartition("/")[2], query)
    return None


def _artifact(site: Site, artifact: int) -> str | None:
    try:
        content = site.client.artifact_content(artifact)
    except EvalsvcError:  # it was pruned
        return None
    ending = _ENDINGS.get(content.media_type.partition(";")[0])
    if ending is None:
        return None
    name = f"artifacts/{content.sha256}.{ending}"
    if not (site.folder / name).exists():
        site.write(name, content.content)
    return name


def _panel_file(site: Site, file: str, query: str) -> str | None:
    """Return the table of a panel as a file. Pictures are left out: the page draws the chart."""
    panel_name, _, kind = file.rpartition(".")
    if kind != "csv":
        return None
    panel = panel_class(panel_name).parse(parse_qsl(query)).panel(site.client)
    name = f"tables/{re.sub(r'[^A-Za-z0-9._-]+', '_', panel.query)[:120]}.csv"
    site.write(name, panel.table.to_csv().encode())
    return name


def _spec(site: Site, address: str) -> str:
    """Return the spec of a chart as JSON that may stand in a page."""
    path, _, query = address.partition("?")
    panel = panel_class(path.removeprefix("/panels/").removesuffix(".json")).parse(parse_qsl(query)).panel(site.client)
    return json.dumps(panel.spec, ensure_ascii=True).replace("<", "\\u003c")
