"""Vega: the script that draws charts in a browser, and charts as SVG and PNG without a browser.

The package `vl-convert-python` (extra `dashboard`) has the libraries Vega, Vega-Lite and Vega-Embed inside a JavaScript
engine. The engine takes some 120 MB and several threads from the process that calls it, so a service calls it in
short-lived processes: `python -m evalsvc.web.vega`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from evalsvc.errors import DeadlineExceeded, InternalError
from evalsvc.files.atomic import write_whole
from evalsvc.installation import missing_package
from evalsvc.web.charts import Spec

PACKAGE = "vl_convert"

SECONDS = 60.0
"""Longest time of one call of the engine."""

WIDTH = 720
"""Width of a rendered chart in pixels, where the spec follows its container."""

Theme = Literal["light", "dark"]

_INK: Mapping[Theme, tuple[str, str, str]] = {
    "light": ("#1b1f24", "#d0d7de", "#ffffff"),
    "dark": ("#e6edf3", "#30363d", "#0d1117"),
}
"""Colours of text, of lines and of the background."""

SNIPPET = "window.vegaEmbed = vegaEmbed;"


def is_installed() -> bool:
    """Tell whether charts can be drawn."""
    return find_spec(PACKAGE) is not None


def require_installed() -> None:
    """Raise MissingPackage unless charts can be drawn."""
    if not is_installed():
        raise missing_package("vl-convert-python", "a chart", "dashboard")


def script_name() -> str:
    """Return the name of the script that draws charts; another release of the package has another name.

    Raises:
        MissingPackage: the package is not installed.
    """
    require_installed()
    recipe = f"{metadata.version('vl-convert-python')} {SNIPPET}"
    return f"vega-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.js"


def script(folder: Path) -> Path:
    """Return the script that draws charts, made on the first call and kept in a folder.

    Raises:
        MissingPackage: the package is not installed.
        OSError: the folder cannot be written.
    """
    path = folder / script_name()
    if not path.is_file():
        content = _in_process("script", b"")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    return path


def render(spec: Spec, kind: Literal["svg", "png"], theme: Theme = "light") -> bytes:
    """Return a chart as SVG, or as PNG at two pixels a point.

    Raises:
        MissingPackage: the package is not installed.
        DeadlineExceeded: rendering takes longer than `SECONDS`.
    """
    require_installed()
    return _in_process(kind, json.dumps({"spec": spec, "theme": theme}).encode())


def config(theme: Theme) -> Spec:
    """Return the part of a spec that follows the page: colours of text, axes and background."""
    text, line, background = _INK[theme]
    axis = {"labelColor": text, "titleColor": text, "gridColor": line, "domainColor": line, "tickColor": line}
    return {
        "background": background,
        "font": "system-ui, sans-serif",
        "axis": axis,
        "legend": {"labelColor": text, "titleColor": text},
        "title": {"color": text},
        "text": {"color": text},
        "rule": {"color": text},
        "view": {"stroke": line},
    }


def _in_process(kind: str, given: bytes) -> bytes:
    command = [sys.executable, "-m", "evalsvc.web.vega", kind]
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(
            f"a chart was not rendered within {SECONDS:g} s; ask for fewer runs or points, or try again when the "
            "machine is less busy"
        ) from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InternalError(f"the package vl-convert-python failed to render a chart: {reason[:300]}")
    return done.stdout


def _run(kind: str, given: bytes) -> bytes:
    """Call the engine in this process; see `_in_process`."""
    import vl_convert  # heavy: only in processes that end soon

    if kind == "script":
        return vl_convert.javascript_bundle(SNIPPET).encode()
    asked = json.loads(given)
    spec = asked["spec"]
    if spec.get("width") == "container":
        spec["width"] = WIDTH
    colours = config(asked["theme"])
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, config=colours, allowed_base_urls=[]).encode()
    return bytes(vl_convert.vegalite_to_png(spec, config=colours, scale=2, allowed_base_urls=[]))


if __name__ == "__main__":
    sys.stdout.buffer.write(_run(sys.argv[1], sys.stdin.buffer.read()))
