"""A copy of the pages as files, which a browser opens from a disk and any host of files serves.

The pages are those of the service, with three changes: links lead to files next to the page, charts have their data in
the page, and forms are gone. A browser loads neither modules nor JSON from a disk, so one classic script has all that
the pages run.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

from evalsvc.client import Client
from evalsvc.errors import ArtifactPruned, EvalsvcError, InputError, InvalidRequest, RateLimited, UnknownName
from evalsvc.spec.names import NAME
from evalsvc.web import vega
from evalsvc.web.classic_script import classic_script
from evalsvc.web.page import PAGES, STATIC, Content, Page, Surroundings, html_of, page_class
from evalsvc.web.pages.run import MAX_OVERLAID
from evalsvc.web.panel import Panel, PanelQuery, panel_class
from evalsvc.web.query import Query
from evalsvc.web.shown import segment
from evalsvc.web.site_files import Site, emptied_on_failure

T = TypeVar("T")

MAX_RUNS = 50
"""Runs of a copy: as many as the first page shows."""

LONGEST_WAIT = 16.0
"""Seconds until the service is asked again that has refused one request too many."""

MAX_STATES = 1000
"""Pages with a query that are copied, such as charts alone and the second page of a run's images. Links to others lead
to the page without its query."""

_LINK = re.compile(r'\b(href|src|data-spec)="([/?][^"]*)"')
"""Attributes that lead to an address of the service. Values have no literal quotes: Jinja escapes them."""

_PICTURE = re.compile(r'<a\b[^>]*\bhref="/panels/[^"]*\.(?:svg|png)\?[^>]*>[^<]*</a>')
"""Links to pictures of charts, which a copy does not have: its pages draw the charts."""

_FORM = re.compile(
    r"<form\b.*?</form>"
    r'|<input type="checkbox"[^>]*\bform="[^>]*>'
    r'|<button\b[^>]*\bform="[^>]*>[^<]*</button>',
    re.DOTALL,
)
"""Forms, and the parts of forms that stand outside of them: nothing answers in a copy."""

_ENDINGS = {"image/png": "png", "text/csv": "csv", "text/plain": "txt", "application/jsonl": "jsonl"}
"""Endings of artifacts' files by media type. Artifacts of other types are left out."""


def export_site(
    client: Client, url: str, runs: Sequence[str], folder: Path, report: Callable[[int, int, str], None]
) -> Site:
    """Write the pages of some runs into a folder; return what was written.

    A copy that cannot be written whole is removed again.

    Args:
        client: the service.
        url: address of the service, for the lines to copy.
        runs: names of the runs.
        folder: a folder that is empty or does not exist.
        report: called before each page with the number of pages that are written, the number of pages that are known
            so far, and the address of the page.

    Raises:
        InvalidRequest: the folder has files or cannot be written, or a run has no name that a run can have.
        UnknownName: there is no such run.
    """
    if len(runs) > MAX_RUNS:
        raise InvalidRequest(f"{len(runs)} runs are given, and a copy has at most {MAX_RUNS}; make several copies")
    for run in runs:
        if not NAME.fullmatch(run):
            raise InvalidRequest(f"{run!r} is not the name of a run; give names that `evalsvc runs list` shows")
        client.run(run, all_checkpoints=False)
    script = vega.script_name() if vega.is_installed() else None
    around = Surroundings(f"/static/{script}" if script else None, url, is_copy=True, links=_links(runs))
    with emptied_on_failure(folder):
        site = Site(client, around, folder, runs)
        _write_static(site, script)
        _name_pages(site)
        done = 0
        while site.waiting:
            address = site.waiting.popleft()
            report(done, done + len(site.waiting) + 1, address)
            _write_page(site, address)
            done += 1
        return site


def _links(runs: Sequence[str]) -> Mapping[str, str]:
    """Return the addresses of the pages that show all runs of the copy together: there are no forms to ask for them."""
    if not 1 < len(runs) <= MAX_OVERLAID + 1:
        return {}
    first, *others = runs
    links = {"Over each other": f"/runs/{segment(first)}?" + urlencode([("with", run) for run in others])}
    if len(others) == 1:
        links["Compare"] = "/compare?" + urlencode({"a": others[0], "b": first})
    return links


def _write_static(site: Site, script: str | None) -> None:
    """Write what all pages share."""
    if script is not None:
        made = vega.script(site.folder / "static")
        made.chmod(0o644)
        site.files += 1
        site.size += made.stat().st_size
    for name in ("style.css", "icon.svg"):
        site.write(f"static/{name}", (STATIC / name).read_bytes())
    site.write("static/site.js", classic_script().encode())


def _name_pages(site: Site) -> None:
    """Name the files of the pages that every copy has."""
    site.name("/", "index")
    for title, address in site.around.links.items():
        site.name(address, title.lower())
    for run in site.runs:
        for view in ("", "/images", "/text", "/checkpoints"):
            site.name(f"/runs/{segment(run)}{view}", f"runs/{run}{view or '/index'}")
        for protocol in site.client.protocols(run):
            site.name(f"/protocols/{segment(protocol.id)}", "protocols/" + protocol.id.replace("/", "_"))
        for checkpoint in site.client.run(run).checkpoints:
            for evaluation in checkpoint.evaluations:
                site.name(f"/evaluations/{evaluation.id}", f"evaluations/{evaluation.id}")


def _write_page(site: Site, address: str) -> None:
    """Write a page, and name the files that it leads to."""
    name = site.names[address]
    template, content = _content(site, address)
    text = html_of(template, Content(content.title, content.values), site.around)
    specs: dict[str, str] = {}
    # Other pages with a query lead to no further ones: all combinations of parameters would be too many.
    leads_on = "?" not in address or address in site.around.links.values()

    def local(match: re.Match[str]) -> str:
        attribute, target = match[1], html.unescape(match[2])
        if target.startswith("?"):
            target = address.partition("?")[0] + target
        if attribute == "data-spec":
            specs[target] = _spec(site, target)
            return match[0]
        file = _file_of(site, target, may_add=leads_on)
        if file is None:
            return ""
        return f'{attribute}="{html.escape(os.path.relpath(file, os.path.dirname(name) or "."))}"'

    text = _LINK.sub(local, _PICTURE.sub("", _FORM.sub("", text)))
    data = "".join(
        f'<script type="application/json" data-spec="{html.escape(target)}">{spec}</script>\n'
        for target, spec in specs.items()
    )
    site.write(name, text.replace("</body>", f"{data}</body>").encode())


def _content(site: Site, address: str) -> tuple[str, Content]:
    """Return the template of a page with what fills it. A page that the service refuses says why, as in the service."""
    try:
        if address.startswith("/panels/"):
            panel = _panel(site, address)
            return "panel.html", Content(panel.title, {"panel": panel})
        page = _parse(site, address)
        return page.template, _patiently(lambda: page.content(site.client))
    except InputError as error:
        return "problem.html", Content(error.code.replace("_", " "), {"detail": error.message})


def _patiently(ask: Callable[[], T]) -> T:
    """Return what the service answers, as soon as the service does not ask to wait."""
    for attempt in count():
        try:
            return ask()
        except RateLimited as error:
            time.sleep(max(error.retry_after or 0, min(2.0**attempt, LONGEST_WAIT)))
    raise AssertionError


def _parse(site: Site, address: str) -> Page:
    """Return the page at an address.

    Raises:
        UnknownName: no page has such an address.
        InvalidRequest: the page has no such parameters.
    """
    path, _, query = address.partition("?")
    parts = path.split("/")
    for pattern in PAGES:
        places = pattern.split("/")
        if len(places) != len(parts):
            continue
        pairs = [(place[1:-1], unquote(part)) for place, part in zip(places, parts, strict=True) if place[:1] == "{"]
        if all(place[:1] == "{" or place == part for place, part in zip(places, parts, strict=True)):
            only = [*(("only", run) for run in site.runs), ("verdicts", "all")] if pattern == "/" else []
            return page_class(pattern).parse([*pairs, *only, *parse_qsl(query)])
    raise UnknownName(f"no page has the address {path}")


def _file_of(site: Site, address: str, *, may_add: bool) -> str | None:
    """Return the file that stands for an address; None if the copy has no such file.

    Args:
        may_add: whether a page that is not in the copy may be added.
    """
    address, mark, fragment = address.partition("#")
    path, _, query = address.partition("?")
    if path.startswith("/static/"):
        return path[1:]
    if path.startswith("/v1/artifacts/") and (number := path.removeprefix("/v1/artifacts/")).isdecimal():
        return _artifact(site, int(number))
    if path.startswith("/panels/") and path.endswith(".csv"):
        return _table(site, address)
    name = site.names.get(address)
    if name is None and query and may_add and site.states < MAX_STATES and _is_of_runs(site, address):
        site.states += 1
        stem = (site.names.get(path) or path.strip("/")).removesuffix(".html")
        name = site.name(address, f"{stem}-{hashlib.sha256(address.encode()).hexdigest()[:12]}")
    name = name or site.names.get(path)
    return None if name is None else name + mark + fragment


def _is_of_runs(site: Site, address: str) -> bool:
    """Tell whether an address is that of a page or a panel that shows the runs of the copy alone."""
    path = address.partition("?")[0]
    try:
        if path.startswith("/panels/"):
            query: Query = _panel_query(address)
        elif path in site.names or path == "/compare":
            query = _parse(site, address)
        else:
            return False
    except EvalsvcError:
        return False
    run = getattr(query, "run", ())
    named = [run] if isinstance(run, str) else [*run]
    named += [*getattr(query, "also", ()), *(re.split("[@:]", getattr(query, side, ""))[0] for side in ("a", "b"))]
    return all(name in site.runs for name in named if name)


def _artifact(site: Site, artifact: int) -> str | None:
    """Return the file of an artifact; None if it was pruned or is of a type that a copy does not have."""
    if artifact not in site.artifacts:
        site.artifacts[artifact] = None
        with suppress(UnknownName, ArtifactPruned):
            content = _patiently(lambda: site.client.artifact_content(artifact))
            ending = _ENDINGS.get(content.media_type.partition(";")[0])
            if ending is not None:
                name = f"artifacts/{content.sha256}.{ending}"
                if name not in site.taken:
                    site.taken.add(name)
                    site.write(name, content.content)
                site.artifacts[artifact] = name
    return site.artifacts[artifact]


def _table(site: Site, address: str) -> str:
    """Return the table of a panel as a file."""
    if address not in site.names:
        panel = _panel(site, address)
        stem = f"{panel.title} {panel.query}".replace("/", "_")
        site.names[address] = site.claim(f"tables/{stem}", "csv")
        site.write(site.names[address], panel.table.to_csv().encode())
    return site.names[address]


def _panel_query(address: str) -> PanelQuery:
    """Return the query of the panel at an address.

    Raises:
        UnknownName, InvalidRequest: no panel has such an address.
    """
    path, _, query = address.partition("?")
    return panel_class(path.removeprefix("/panels/").rpartition(".")[0]).parse(parse_qsl(query))


def _panel(site: Site, address: str) -> Panel:
    """Return the panel at an address."""
    query = _panel_query(address)
    key = f"{query.name}?{query.to_query()}"
    if key not in site.panels:
        site.panels[key] = _patiently(lambda: query.panel(site.client))
    return site.panels[key]


def _spec(site: Site, address: str) -> str:
    """Return the spec of a chart as JSON that may stand in a page; null if there is nothing to draw."""
    try:
        spec = _panel(site, address).spec
    except InputError:
        return "null"
    return json.dumps(spec, allow_nan=False).replace("<", "\\u003c")
