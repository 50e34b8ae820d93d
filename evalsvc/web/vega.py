"""Vega: the script that draws charts in a browser, and charts as SVG and PNG without a browser.

The package `vl-convert-python` (extra `dashboard`) has the libraries Vega, Vega-Lite and Vega-Embed inside a JavaScript
engine. The engine takes some 120 MB and several threads from the process that calls it, so a service calls it in
short-lived processes: `python -P -m evalsvc.web.vega`.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from evalsvc.errors import DeadlineExceeded, InternalError, InvalidRequest
from evalsvc.files.atomic import write_whole
from evalsvc.installation import PYTHON, missing_package
from evalsvc.web.charts import Spec

PACKAGE = "vl_convert"

SECONDS = 60.0

MOST_MARKS, MOST_CURVES = 10_000, 400
"""Most marks of a chart that is rendered, and most curves or metrics, with which the height of the chart grows."""

REFUSED = 3
"""Exit code of a process whose standard output has the reason why the engine did not draw a chart."""

SNIPPET = "window.vegaEmbed = vegaEmbed;"
WIDTH = 720
"""Width of a rendered chart in pixels, where the spec follows its container."""

Theme = Literal["light", "dark"]

_INK: Mapping[Theme, tuple[str, str, str]] = {
    "light": ("#1b1f24", "#d0d7de", "#ffffff"),
    "dark": ("#e6edf3", "#30363d", "#0d1117"),
}
"""Colours of text, of lines and of the background."""


def is_installed() -> bool:
    return find_spec(PACKAGE) is not None


def require_installed() -> None:
    if not is_installed():
        raise missing_package("vl-convert-python", "a chart", "dashboard")


def script_name() -> str:
    """Return the name of the script that draws charts; another release of the package has another name."""
    require_installed()
    recipe = f"{metadata.version('vl-convert-python')} {SNIPPET}"
    return f"vega-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.js"


def script(folder: Path) -> Path:
    """Return the script that draws charts, made on the first call and kept in a folder."""
    path = folder / script_name()
    if not path.is_file():
        content = _in_process("script", b"")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    return path


def render(spec: Spec, kind: str, theme: Theme = "light") -> bytes:
    """Return a chart as SVG, as PDF, or as PNG at two pixels a point."""
    require_installed()
    return _in_process(kind, json.dumps({"spec": spec, "theme": theme}).encode())


def check_size(spec: Spec, table: str) -> None:
    """Raise InvalidRequest for a chart that would take too long to render; `table` is the address of its numbers."""
    datasets = spec["datasets"]
    assert isinstance(datasets, dict)
    rows = [row for rows in datasets.values() for row in rows]
    curves = {row.get("run") or row.get("metric") for row in rows}
    if len(rows) > MOST_MARKS or len(curves) > MOST_CURVES:
        raise InvalidRequest(
            f"the chart has {len(rows):,} marks of {len(curves):,} curves or metrics, and a picture has at most "
            f"{MOST_MARKS:,} marks of {MOST_CURVES}; ask for fewer runs, one variant, fewer points or a range of "
            f"steps, or take the table: {table}"
        )


def config(theme: Theme) -> Spec:
    """Return the part of a spec that follows the page: colours of text, axes and background."""
    text, line, background = _INK[theme]
    words = {"labelColor": text, "titleColor": text}
    return {
        "background": background,
        "font": "system-ui, sans-serif",
        "axis": words | {"gridColor": line, "domainColor": line, "tickColor": line},
        "legend": words,
        **{name: {"color": text} for name in ("text", "rule")},
        "title": {"color": text, "subtitleColor": text},
        "view": {"stroke": line},
    }


def _in_process(kind: str, given: bytes) -> bytes:
    command = [*PYTHON, "-m", "evalsvc.web.vega", kind]
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(
            f"a chart was not rendered within {SECONDS:g} s; ask for fewer runs or points, or try again when the "
            "machine is less busy"
        ) from None
    if done.returncode == REFUSED:
        reason = done.stdout.decode(errors="replace")
        raise InternalError(f"the package vl-convert-python failed to render a chart: {reason}")
    if done.returncode != 0:
        # Nothing of standard error is told: an engine that dies writes a backtrace with addresses of its memory.
        signals = {-number: f"by the signal {number.name}" for number in signal.Signals}
        raise InternalError(
            f"the process that renders charts ended {signals.get(done.returncode, f'with code {done.returncode}')}; it "
            "needs some 200 MB, and memory that is written and run, which MemoryDenyWriteExecute=yes of systemd forbids"
        )
    return done.stdout


def _run(kind: str, given: bytes) -> bytes:
    import vl_convert  # heavy: only in processes that end soon

    if kind == "script":
        return vl_convert.javascript_bundle(SNIPPET).encode()
    asked = json.loads(given)
    spec = asked["spec"]
    if spec.get("width") == "container":
        spec["width"] = WIDTH
    colours = config(asked["theme"])
    if kind != "png":
        svg: str = vl_convert.vegalite_to_svg(spec, config=colours, allowed_base_urls=[])
        if kind == "svg":
            return svg.encode()
        # An inch has 96 pixels, and 72 points of a page.
        in_points = re.sub(r'(width|height)="(\d+)"', lambda size: f'{size[1]}="{0.75 * int(size[2]):g}"', svg, count=2)
        return bytes(vl_convert.svg_to_pdf(in_points))
    return bytes(vl_convert.vegalite_to_png(spec, config=colours, scale=2, allowed_base_urls=[]))


if __name__ == "__main__":
    try:
        sys.stdout.buffer.write(_run(sys.argv[1], sys.stdin.buffer.read()))
    except Exception as error:
        sys.stdout.write(str(error).strip().rpartition("\n")[2][:300])
        sys.exit(REFUSED)
