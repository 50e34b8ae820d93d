"""Charts without a browser, and the script that draws them in one."""

import json
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from evalsvc.errors import DeadlineExceeded, InternalError, MissingPackage
from evalsvc.installation import PYTHON
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


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGTRAP, "by the signal SIGTRAP"),
        (-signal.SIGKILL, "by the signal SIGKILL"),
        (-99, "99"),
        (1, "code 1"),
    ],
)
def test_what_a_dying_engine_says_is_not_told(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer ended with the last line of the engine's backtrace, and so with addresses of the process."""
    said = b"==== C stack trace ====\n /lib/libc.so.6(+0x89133) [0x7f1c9f3a9133]\n"
    done = subprocess.CompletedProcess([], code, b"", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(InternalError) as raised:
        vega.render(SPEC, "svg")
    assert words in raised.value.message
    assert "MemoryDenyWriteExecute" in raised.value.message
    assert "0x" not in raised.value.message


HARDENED = """
import ctypes
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, as MemoryDenyWriteExecute=yes
from evalsvc.errors import InternalError
from evalsvc.web import vega
try:
    vega.render({"mark": "point", "data": {"values": [{}]}}, "svg")
except InternalError as error:
    print(error.message)
"""


@pytest.mark.usefixtures("child_process")
def test_an_engine_that_may_not_write_and_run_memory_is_an_error_that_says_so() -> None:
    done = subprocess.run([*PYTHON, "-c", HARDENED], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert "MemoryDenyWriteExecute" in done.stdout
    assert "0x" not in done.stdout


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
