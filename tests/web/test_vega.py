"""Charts without a browser, and the script that draws them in one."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from evalsvc.errors import DeadlineExceeded, InternalError, MissingPackage
from evalsvc.web import vega

SPEC: dict[str, Any] = {
    "width": "container",
    "height": 100,
    "description": "a <line> & more",
    "data": {"values": [{"x": 1, "y": 2, "run": "</text><script>alert(1)</script>"}, {"x": 2, "y": 1, "run": "b"}]},
    "mark": "line",
    "encoding": {
        "x": {"field": "x", "type": "quantitative"},
        "y": {"field": "y", "type": "quantitative"},
        "color": {"field": "run", "type": "nominal"},
    },
}


@pytest.mark.usefixtures("child_process")
def test_the_script_is_made_once_and_is_the_same_each_time(tmp_path: Path) -> None:
    """Browsers keep it for a year under its name."""
    made = vega.script(tmp_path / "a")
    before = made.stat()
    assert vega.script(tmp_path / "a") == made
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert vega.script(tmp_path / "b").read_bytes() == made.read_bytes()
    assert made.name == vega.script_name()
    assert vega.SNIPPET.encode()[:16] in made.read_bytes()


def test_a_script_that_is_made_differently_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vega.script_name()
    monkeypatch.setattr(vega, "SNIPPET", "window.other = vegaEmbed;")
    assert vega.script_name() != before


@pytest.mark.usefixtures("child_process")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_chart_is_a_picture_of_lines_and_texts(theme: vega.Theme) -> None:
    """It is opened by others, alone: nothing in it runs, and nothing is loaded from another address."""
    content = vega.render(SPEC, "svg", theme)
    root = etree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{*}script", "{*}foreignObject", "{*}image", "{*}a"))
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or "href" in key]
    assert "</text><script>alert(1)</script>" in "".join(root.itertext())
    assert vega.config(theme)["background"] in content.decode()
    assert float(root.get("width")) >= vega.WIDTH


@pytest.mark.usefixtures("child_process")
def test_a_png_has_two_pixels_a_point() -> None:
    content = vega.render({**SPEC, "width": 300, "autosize": {"type": "fit", "contains": "padding"}}, "png")
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (600, 200)


@pytest.mark.usefixtures("child_process")
def test_a_chart_loads_nothing(tmp_path: Path) -> None:
    """A spec is made here, and yet the engine may not read addresses and files in the name of the service."""
    secret = tmp_path / "secret.json"
    secret.write_text('[{"text": "a secret"}]')
    words = {"mark": "text", "encoding": {"text": {"field": "text"}}}
    assert b"a secret" in vega.render({**words, "data": {"values": json.loads(secret.read_text())}}, "svg")
    for url in (secret.as_uri(), str(secret), "http://127.0.0.1:9/secret.json"):
        with suppress(InternalError):
            assert b"a secret" not in vega.render({**words, "data": {"url": url}}, "svg")


@pytest.mark.usefixtures("child_process")
def test_a_chart_that_the_package_cannot_draw_is_an_error_with_its_reason() -> None:
    with pytest.raises(InternalError, match=re.escape("the package vl-convert-python failed to render a chart: ")):
        vega.render({"mark": 7}, "svg")


@pytest.mark.usefixtures("child_process")
def test_a_chart_that_takes_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "SECONDS", 0.01)
    with pytest.raises(DeadlineExceeded, match=r"was not rendered within 0\.01 s; ask for fewer runs or points"):
        vega.render(SPEC, "svg")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vega, "PACKAGE", "no_such_package")
    assert not vega.is_installed()
    for ask in (vega.script_name, lambda: vega.script(tmp_path), lambda: vega.render(SPEC, "svg")):
        with pytest.raises(MissingPackage, match=r"a chart needs the package 'vl-convert-python'; run: pip install "):
            ask()
