"""Drawing of the history: the dashboard's charts, along commits, and a page that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plain_curves import plain_curve

from evalsvc.files.atomic import write_whole
from evalsvc.web import vega
from evalsvc.web.charts import Spec, curve_chart
from evalsvc.web.curves import Curve, Line
from harness.history import Entry, Value
from harness.suite import TIMED
from harness.times import ONE_RUN

SPEED = "speed"
"""Name of the chart of ratios."""

LISTED = 30
"""Commits that the page lists, the newest first."""

SHORT = 10
"""Digits of a commit's id on the page."""


def charts(entries: Sequence[Entry], headline: Sequence[str]) -> dict[str, Spec]:
    """Return a chart of the ratios of times, and one of each metric of the headline, by name, along commits.

    Commits are numbered from 1 in the order of the file. `entries` are of one suite.
    """
    specs = {}
    if ratios := list(_ratio_curves(entries)):
        specs[SPEED] = curve_chart(ratios, lines=[Line(1.0, "the baseline's code")])
    for metric in headline:
        if curves := list(_value_curves(entries, metric)):
            specs[metric] = curve_chart(curves)
    return {name: _along_commits(spec) for name, spec in specs.items()}


def draw_history(folder: Path, entries: Sequence[Entry], headline: Sequence[str]) -> list[Path]:
    """Write the charts as SVG, if the package that draws is installed, and the page `index.md`; return the files.

    Raises:
        OSError: a file cannot be written.
    """
    specs = charts(entries, headline) if vega.is_installed() else {}
    files = []
    for name, spec in specs.items():
        file = folder / f"{name.replace('/', '-')}.svg"
        write_whole(file, vega.render(spec, "svg"), mode=0o644)
        files.append(file)
    page = folder / "index.md"
    write_whole(page, page_of(entries, headline, [file.name for file in files]).encode(), mode=0o644)
    return [*files, page]


def page_of(entries: Sequence[Entry], headline: Sequence[str], pictures: Sequence[str]) -> str:
    """Return the page in Markdown: pictures, and a table of the newest commits."""
    tasks = list(dict.fromkeys(name for entry in entries for name in entry.ratios))
    columns = [*(name.removeprefix(TIMED) for name in tasks), *headline]
    lines = [f"# {entries[-1].suite} by commit" if entries else "# No measurement yet", ""]
    lines += [f"![{picture.removesuffix('.svg')} by commit]({picture})\n" for picture in pictures]
    lines += [
        "Times are ratios to the baseline's code, measured in one run; above 1 is slower.",
        ONE_RUN,
        "",
        f"| | commit | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    numbered = list(enumerate(entries, 1))
    for number, entry in reversed(numbered[-LISTED:]):
        cells = [_ratio_cell(entry, name) for name in tasks] + [_value_cell(entry, name) for name in headline]
        lines.append(f"| {number} | {entry.commit[:SHORT] or 'unknown'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio_curves(entries: Sequence[Entry]) -> Iterator[Curve]:
    for name in dict.fromkeys(name for entry in entries for name in entry.ratios):
        rows = [
            (place, float(ratio.mean), ratio.low, ratio.high, ratio.turns)
            for place, entry in enumerate(entries, 1)
            if (ratio := entry.ratios.get(name))
        ]
        yield plain_curve(name.removeprefix(TIMED), SPEED, "time, of the baseline's; band: within one run", rows)


def _value_curves(entries: Sequence[Entry], metric: str) -> Iterator[Curve]:
    """Yield a curve for each protocol: another one is another curve."""
    known: dict[str, list[tuple[int, Value]]] = {}
    for place, entry in enumerate(entries, 1):
        if value := entry.values.get(metric):
            known.setdefault(value.protocol, []).append((place, value))
    for protocol, values in known.items():
        rows = [
            (place, float(value.value) if isinstance(value.value, int) else value.value, value.low, value.high, value.n)
            for place, value in values
        ]
        yield plain_curve(metric, metric, values[-1][1].unit, rows, protocol)


def _along_commits(spec: Spec) -> Spec:
    """Return a chart of which the horizontal axis is called after commits, and has whole numbers only."""

    def renamed(part: Any) -> Any:
        if isinstance(part, list):
            return [renamed(each) for each in part]
        if not isinstance(part, dict):
            return part
        inner = {key: renamed(value) for key, value in part.items() if key != "datasets"}
        if part.get("field") == "x" and "title" in part:
            inner |= {"title": "commit", "axis": {**inner["axis"], "tickMinStep": 1}}
        return inner

    return {**renamed(spec), "datasets": spec["datasets"]}


def _ratio_cell(entry: Entry, name: str) -> str:
    ratio = entry.ratios.get(name)
    if ratio is None:
        return "–"
    return f"{ratio.mean:.3f}" if ratio.low is None else f"{ratio.mean:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"


def _value_cell(entry: Entry, name: str) -> str:
    value = entry.values.get(name)
    if value is None:
        return "–"
    error = "" if value.stderr is None else f" ± {float(value.stderr):.2g}"
    return f"{float(value.value):.4g}{error}"
