"""The static copy: files that lead nowhere but to each other, with the numbers of the service."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from chromium import Visit
from dashboard_history import MARKUP, OTHER, RUN, Dashboard
from lxml.html import fromstring as document

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, RateLimited, UnknownName
from evalsvc.web import site, vega
from evalsvc.web.page import Content
from evalsvc.web.pages.evaluation import ProtocolPage
from evalsvc.web.site import export_site, file_name, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def export(dashboard: Dashboard, folder: Path, *runs: str, charts: bool = False) -> list[Path]:
    """Export a copy, without charts unless they are asked for: these start processes."""
    with Client(dashboard.url) as client, pytest.MonkeyPatch.context() as patch:
        if not charts:
            patch.setattr(vega, "is_installed", lambda: False)
        return export_site(client, dashboard.url, runs or (RUN, OTHER), folder, lambda *_: None)


@pytest.fixture(scope="module")
def tables(many_cases: None, dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "tables"
    export(dashboard, folder)
    return folder


@pytest.fixture(scope="module")
def charts(child_process: None, dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "charts"
    files = export(dashboard, folder, charts=True)
    assert [path for path in files if path.stat().st_mode & 0o444 != 0o444] == [], "a host of files is another user"
    return folder


def test_every_link_leads_to_a_file_of_the_copy(tables: Path) -> None:
    waiting, reached = [tables / "index.html"], set[Path]()
    while waiting:
        path = waiting.pop()
        reached.add(path)
        text = path.read_text()
        page = document(text)
        assert not page.xpath("//form | //button[@form] | //input[@type='checkbox' or @type='radio'][@form]")
        assert text.index("Content-Security-Policy") < text.index("<title>")
        for words in ("frame-src", "connect-src", "unsafe", "<script>alert"):
            assert words not in text, "the policy keeps a hosted copy from other addresses"
        for target in page.xpath("//@href | //@src | //@action | //@srcset | //@poster"):
            parts = urlsplit(target)
            assert (parts.scheme, parts.netloc) == ("", ""), (path, target)
            if parts.path:
                file = (path.parent / unquote(parts.path)).resolve()
                assert file.is_file(), (path, target)
                assert file.is_relative_to(tables)
                waiting += [file] if file.suffix == ".html" and file not in {*reached, *waiting} else []
    assert reached == set(tables.rglob("*.html")), "every page can be reached"
    assert tables / "runs" / OTHER / "text.html" in reached
    assert list(tables.glob("compare_*_tab_images-*.html")), "a comparison has its tabs"
    assert html.escape(MARKUP, quote=False)[:20] in (tables / "runs" / f"{RUN}.html").read_text()


def test_a_folder_with_files_is_refused(dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="has files; give a folder"):
        export(dashboard, tmp_path)
    with pytest.raises(InvalidRequest, match=r"notes\.txt cannot be used"):
        export(dashboard, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("existed", [True, False])
def test_half_a_copy_is_removed(dashboard: Dashboard, tmp_path: Path, monkeypatch: Any, existed: bool) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ProtocolPage, "content", interrupted)
    folder = tmp_path / "site"
    if existed:
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        export(dashboard, folder)
    assert list(tmp_path.rglob("*")) == ([folder] if existed else [])


@pytest.mark.parametrize("run", ["..", "../digits", "/etc/passwd", "a/b", "", "x" * 200, "a\n", ".hidden", "nope"])
def test_names_that_no_run_has_are_refused_before_anything_is_written(
    dashboard: Dashboard, tmp_path: Path, run: str
) -> None:
    with pytest.raises((InvalidRequest, UnknownName), match=r"is not the name of a run|no run is named 'nope'"):
        export(dashboard, tmp_path / "site", RUN, run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address",
    ["/../../x", "//etc/passwd", "/a/../../b", "/..", "/.", "/C:\\x", "/a\0b", "/" + "x" * 5000, "/a\nb", "/.../.."],
)
def test_the_file_of_an_address_is_in_the_folder(tmp_path: Path, address: str) -> None:
    name = file_name(address)
    write(tmp_path / "site", name, b"content")
    [written] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written.resolve().is_relative_to((tmp_path / "site").resolve())
    assert name.isascii()
    assert not any(part.startswith(".") for part in Path(name).parts)


def test_no_two_addresses_have_one_file() -> None:
    """Some disks do not tell cases apart."""
    runs = ("A", "a", "a-2", "a?x=1", "a?x=2", "%C3%A4", "%C3%B6", "x" * 200, "x" * 201)
    assert len({file_name(f"/runs/{run}").lower() for run in runs}) == len(runs)
    assert file_name("/") == "index.html"
    assert file_name("/runs/a/images") == "runs/a/images.html"


def values_of(text: str) -> dict[tuple[str, str], dict[int, Any]]:
    """Return the values in the charts of a page, by metric and run, then by step."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for address, spec in re.findall(r'<script type="application/json" data-spec="([^"]*)">(.*?)</script>', text):
        metric = re.search(r"[?&]metric=([^&]*)", html.unescape(address))
        document = json.loads(spec)
        for row in document["datasets"]["points"] if document and metric else []:
            of_run = found.setdefault((unquote(metric[1].replace("+", " ")), row["run"]), {})
            of_run[row["x"]] = (row["y"], row.get("stderr"))
    return found


def test_numbers_are_those_of_rest(charts: Path, dashboard: Dashboard) -> None:
    shown = values_of((charts / "runs" / f"{RUN}.html").read_text())
    with Client(dashboard.url) as client:
        history = client.history(RUN, variant="raw").series
    compared = 0
    for series in history:
        found = shown[series.metric, RUN]
        for step, value, stderr in zip(series.x, series.value, series.stderr, strict=True):
            assert found[step] == (value if isinstance(value, float) else None, stderr), (series.metric, step)
            compared += 1
    assert compared > 20
    table = next((charts / "panels").glob("curve_run_*_metric_arc_2facc-*.csv"))
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["run"] == RUN and row["value"]]
    [accuracy] = [series for series in history if series.metric == "arc/acc"]
    assert {int(row["step"]): float(row["value"]) for row in rows} == dict(zip(accuracy.x, accuracy.value, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_copy_opens_from_a_disk_without_a_network(chromium: Browser, charts: Path, scheme: str) -> None:
    kinds: dict[str, Path] = {}  # opening all pages would take minutes
    for path in sorted(charts.rglob("*.html")):
        name = path.relative_to(charts).as_posix()
        kinds.setdefault(re.sub(r"(?<=[a-z])_.*|[0-9a-f]{16}|(?<=/)[0-9]+", "*", name), path)
    assert 10 < len(kinds) < 40
    with Visit(chromium, offline=True, color_scheme=scheme) as visit:
        for path in kinds.values():
            visit.open(path.as_uri())
            broken = "() => [...document.images].filter((image) => image.complete && !image.naturalWidth).length"
            assert visit.page.evaluate(broken) == 0, path
            assert visit.violations == [], path
        assert (visit.messages, visit.failures) == ([], [])
        outside = [asked for asked in visit.requests if not asked.startswith((charts.as_uri(), "data:"))]
        assert outside == []


def test_charts_and_slider_of_a_copy_work(chromium: Browser, charts: Path, dashboard: Dashboard) -> None:
    with Client(dashboard.url) as client:
        [accuracy] = client.history(RUN, ["arc/acc"], variant="raw").series
    with Visit(chromium, offline=True) as visit:
        visit.open((charts / "runs" / f"{RUN}.html").as_uri())
        assert visit.page.locator(".chart svg").count() > 3
        visit.page.locator("#step").focus()
        visit.page.keyboard.press("Home")
        shown = visit.page.locator("#legend tbody td").all_inner_texts()
        assert any(text.startswith(f"{accuracy.value[0]:.3g}") for text in shown)


@pytest.mark.usefixtures("many_cases")
def test_a_service_that_asks_to_wait_is_asked_again(dashboard: Dashboard, tmp_path: Path, monkeypatch: Any) -> None:
    """A page that it refuses says why. A copy of one run has other runs only as words."""
    waits: list[float] = []
    monkeypatch.setattr(site.time, "sleep", waits.append)
    original, refused = ProtocolPage.content, iter([True, True, False] * 1000)

    def content(page: ProtocolPage, client: Client) -> Content:
        if len(waits) > 2:
            raise UnknownName("the protocol was <b>forgotten</b>")
        if next(refused):
            error = RateLimited("too many requests")
            error.retry_after = 3
            raise error
        return original(page, client)

    monkeypatch.setattr(ProtocolPage, "content", content)
    export(dashboard, tmp_path / "site", OTHER)
    assert set(waits) == {3}
    texts = [path.read_text() for path in (tmp_path / "site" / "protocols").iterdir()]
    forgotten = ["The protocol was &lt;b&gt;forgotten&lt;/b&gt;." in text for text in texts]
    assert [any(forgotten), all(forgotten)] == [True, False]
    assert all("comparable" in text for text, is_forgotten in zip(texts, forgotten, strict=True) if not is_forgotten)
    assert {path.name for path in (tmp_path / "site" / "runs").iterdir()} == {OTHER, f"{OTHER}.html"}
    index = (tmp_path / "site" / "index.html").read_text()
    assert (f'href="runs/{OTHER}.html"' in index, f'href="runs/{RUN}.html"' in index) == (True, False)
