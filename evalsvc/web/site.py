"""A copy of the pages as files, which a browser opens from a disk and any host of files serves.

The pages are those of the service, without forms, with links to files, and with the data of their charts. A browser
loads neither modules nor JSON from a disk, so one classic script has all that the pages run.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

from starlette.routing import compile_path

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import ArtifactPruned, EvalsvcError, InputError, InvalidRequest, RateLimited, UnknownName, os_reason
from evalsvc.files.atomic import write_whole
from evalsvc.spec.names import NAME
from evalsvc.web import vega
from evalsvc.web.page import PAGES, STATIC, Content, Page, Surroundings, html_of, page_class, panel_content
from evalsvc.web.pages.runs import overlay_address
from evalsvc.web.panel import PanelQuery, panel_class

A = TypeVar("A")
T = TypeVar("T")

MODULES = ("bar", "charts", "slider", "images", "live", "events", "runs", "main")
"""Scripts of the pages, each after those that it imports. No two have a name in common, which one script needs."""

MAX_RUNS = 50
"""Runs of a copy: as many as the first page shows."""

LONGEST_WAIT = 16.0
"""Seconds until a service is asked again that has refused a request for their number."""

MAX_STATES = 1000
"""Pages with a query that are copied, such as charts alone and the second page of a run's images. Links to others lead
to the page without its query."""

ENDINGS = {"image/png": "png", "text/csv": "csv", "text/plain": "txt"}
"""Endings of artifacts' files by media type. Artifacts of other types are left out."""

PATHS = {pattern: compile_path(pattern)[0] for pattern in PAGES}


def export_site(
    source: ServiceReader, url: str, runs: Sequence[str], folder: Path, report: Callable[[int, int, str], None]
) -> list[Path]:
    """Write the pages of some runs into a folder; return the files.

    A copy that cannot be written whole is removed again. `url` is the address of the service, for the lines to copy.
    The folder is empty or does not exist. `report` is called before each page with the number of pages that are
    written, the number of pages that are known so far, and the address of the page.
    """
    if len(runs) > MAX_RUNS:
        raise InvalidRequest(f"{len(runs)} runs are given, and a copy has at most {MAX_RUNS}; make several copies")
    for run in runs:
        if not NAME.fullmatch(run):
            raise InvalidRequest(f"{run!r} is not the name of a run; give names that `evalsvc runs` shows")
        source.run(run, all_checkpoints=False)
    script = f"/static/{vega.script_name()}" if vega.is_installed() else None
    links = {"Over each other": overlaid} if (overlaid := overlay_address(runs)) else {}
    if len(runs) == 2:
        links["Compare"] = "/compare?" + urlencode({"a": runs[1], "b": runs[0]})
    around = Surroundings(script, url, is_copy=True, links=links)
    with emptied_on_failure(folder):
        if script is not None:
            vega.script(folder / "static").chmod(0o644)
        write(folder, "static/site.js", classic_script().encode())
        for name in ("style.css", "icon.svg"):
            write(folder, f"static/{name}", (STATIC / name).read_bytes())
        site = _Site(source, around, folder, runs)
        done = 0
        while site.waiting:
            address = site.waiting.popleft()
            report(done, done + len(site.waiting) + 1, address)
            site.write_page(address)
            done += 1
    return [path for path in folder.rglob("*") if path.is_file()]


def classic_script() -> str:
    text = "\n".join((STATIC / f"{name}.js").read_text() for name in MODULES)
    return '"use strict";\n(() => {\n' + re.sub(r"^import .*\n|^export ", "", text, flags=re.MULTILINE) + "})();\n"


class _Site:
    def __init__(self, source: ServiceReader, around: Surroundings, folder: Path, runs: Sequence[str]) -> None:
        self._source, self._around, self._folder, self._runs = source, around, folder, runs
        self._files: dict[str, str | None] = {"/": file_name("/")}
        """Files by the address that each stands for; None for what is left out."""
        self.waiting = deque(["/"])
        """Addresses of the pages that have a file and are not written."""
        self._states = 0
        self._panel = cache(lambda query: _patiently(query.panel, source))

    def write_page(self, address: str) -> None:
        """Write a page with the data of its charts. A page that the service refuses says why, as in the service."""
        specs: dict[str, str] = {}
        # Other pages with a query lead to tabs alone: all combinations of parameters would be too many.
        leads_on = "?" not in address or address in self._around.links.values()
        name = file_name(address)

        def link(target: str) -> str | None:
            if target.startswith("?"):
                target = (address.partition("?")[0] + target).removesuffix("?")
            if target.startswith("/panels/") and ".json?" in target:
                specs[target] = self._spec(target)
                return target
            file = self._file(target, leads_on or "&tab=" in target)
            return None if file is None else os.path.relpath(file, os.path.dirname(name))

        try:
            query = self._query(address)
            if isinstance(query, PanelQuery):
                panel = self._panel(query)
                template, content = "panel.html", panel_content(panel)
            else:
                template, content = query.template, _patiently(query.content, self._source)
        except InputError as error:
            template, content = "problem.html", Content(error.code.replace("_", " "), {"detail": error.message})
        text = html_of(template, replace(content, watched=()), replace(self._around, link=link))
        data = (
            f'<script type="application/json" data-spec="{html.escape(target)}">{spec}</script>\n'
            for target, spec in specs.items()
        )
        write(self._folder, name, text.replace("</body>", "".join(data) + "</body>").encode())

    def _file(self, address: str, leads_on: bool) -> str | None:
        path, _, query = address.partition("?")
        if path.startswith("/static/"):
            return path[1:]
        if address not in self._files:
            if path.startswith("/v1/artifacts/"):
                form = dict(parse_qsl(query)).get("form")
                self._files[address] = self._artifact(int(path.rpartition("/")[2]), form)
            elif path.endswith(".csv"):
                panel = self._panel(self._query(address))
                self._files[address] = write(self._folder, file_name(address, "csv"), panel.table.to_csv().encode())
            elif self._is_of_runs(address) and (not query or (leads_on and self._states < MAX_STATES)):
                self._states += bool(query)
                self._files[address] = file_name(address)
                self.waiting.append(address)
        return self._files.get(address) or self._files.get(path)

    def _query(self, address: str) -> Page | PanelQuery:
        path, _, query = address.partition("?")
        pairs = parse_qsl(query)
        if path.startswith("/panels/"):
            return panel_class(path.removeprefix("/panels/").rpartition(".")[0]).parse(pairs)
        for pattern, place in PATHS.items():
            if match := place.match(path):
                pairs += [(name, unquote(value)) for name, value in match.groupdict().items()]
                if pattern in ("/", "/protocols/{protocol}"):
                    pairs += [("only", run) for run in self._runs]
                if pattern in ("/", "/runs/{run}/checkpoints"):
                    pairs += [("verdicts", "all")]
                return page_class(pattern).parse(pairs)
        raise UnknownName(f"no page has the address {path}")

    def _is_of_runs(self, address: str) -> bool:
        try:
            query = self._query(address)
        except EvalsvcError:
            return False
        run = getattr(query, "run", ())
        named = [run] if isinstance(run, str) else [*run]
        named += [*getattr(query, "also", ()), *(re.split("[@:]", getattr(query, side, ""))[0] for side in ("a", "b"))]
        return all(name in self._runs for name in named if name)

    def _artifact(self, artifact: int, form: str | None) -> str | None:
        with suppress(UnknownName, ArtifactPruned):
            content = _patiently(partial(self._source.artifact_content, form=form), artifact)
            if ending := ENDINGS.get(content.media_type.partition(";")[0]):
                return write(self._folder, f"artifacts/{content.sha256}.{ending}", content.content)
        return None

    def _spec(self, address: str) -> str:
        try:
            spec = self._panel(self._query(address)).spec
        except InputError:
            return "null"
        return json.dumps(spec, allow_nan=False).replace("<", "\\u003c")


def _patiently(ask: Callable[[A], T], given: A) -> T:
    for attempt in count():
        try:
            return ask(given)
        except RateLimited as error:
            time.sleep(max(error.retry_after or 0, min(2.0**attempt, LONGEST_WAIT)))
    raise AssertionError


def file_name(address: str, ending: str = "html") -> str:
    """Return the name of the file that stands for an address of the service, of characters that every disk takes. A
    name that is not the address itself has a digest, so that no two files have one name, on any disk."""
    plain = re.sub(r"\.\w+\?", "?", address.strip("/")) or "index"
    stem = re.sub(r"[^a-z0-9._/-]+|(?<![a-z0-9])\.+", "_", plain.lower())[:120]
    digest = "" if stem == plain else "-" + hashlib.sha256(address.encode()).hexdigest()[:12]
    return f"{stem}{digest}.{ending}"


def write(folder: Path, name: str, content: bytes) -> str:
    """Write a file below a folder, for everybody to read: a host of files runs as another user. Return the name."""
    try:
        write_whole(folder / name, content, durable=False, mode=0o644)
    except OSError as error:
        raise InvalidRequest(f"{folder / name} cannot be written: {os_reason(error)}; give another folder") from None
    return name


@contextmanager
def emptied_on_failure(folder: Path) -> Iterator[None]:
    """Refuse a folder that has files. If the block raises, remove everything in the folder."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        has_files = any(folder.iterdir())
    except OSError as error:
        raise InvalidRequest(f"the folder {folder} cannot be used: {os_reason(error)}; give another folder") from None
    if has_files:
        raise InvalidRequest(f"the folder {folder} has files; give a folder that is empty or does not exist")
    try:
        yield
    except BaseException:  # also Ctrl-C: half a copy looks like a whole one
        with suppress(OSError):
            for path in folder.iterdir():
                rmtree(path) if path.is_dir() else path.unlink()
            if not existed:
                folder.rmdir()
        raise
