"""The page of the findings: a part for each scale, between two markers, with table, figures, commands and time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalsvc.files.atomic import write_whole

HEAD = """# The paper's findings

Zhang, McKinzie, Gan, Shankar and Toshev (arXiv 2311.16201) trained a widened language model on image–caption pairs,
from pre-trained and from random weights. `benchmarks/paper/` repeats their figures and tables in small. Every number
below was read from the history of a service that evaluated the checkpoints of these trainings, except the losses and
temperatures of figure 7's alignment, which its script computes.
"""

TITLES = {
    "miniature": ("In miniature", "make paper"),
    "real": ("On a real language model", "make paper-real"),
    "quick": ("In the shortest form", "python benchmarks/paper/paper.py --quick"),
}
"""Heading and command of each scale's part."""

UNCORRECTED = """\
Every interval has a level of 95 % of its own, without a correction for the number of intervals. Of twelve
independent intervals where nothing differs, at least one excludes zero in almost half of all repetitions."""

FIGURES = "images/paper"
"""Folder of the figures next to the page."""


def write_page(path: Path, results: Mapping[str, Any], figures: Path) -> None:
    """Write the part of the results' scale into the page, and copy the figures next to the page.

    The text between the markers of the scale is replaced, and everything else is kept. A page that does not exist is
    begun.
    """
    scale = results["scale"]
    folder = path.parent / FIGURES / scale
    folder.mkdir(parents=True, exist_ok=True)
    for content in results["findings"].values():
        for figure in content["figures"]:
            shutil.copyfile(figures / f"{figure['name']}.svg", folder / f"{figure['name']}.svg")
    begin, end = f"<!-- begin {scale} -->", f"<!-- end {scale} -->"
    part = f"{begin}\n\n{_part(results)}\n{end}"
    before = path.read_text() if path.exists() else HEAD
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    text = pattern.sub(lambda _: part, before) if pattern.search(before) else f"{before.rstrip()}\n\n{part}\n"
    write_whole(path, text.encode(), mode=0o644)


def _part(results: Mapping[str, Any]) -> str:
    title, command = TITLES[results["scale"]]
    minutes = results["seconds"] / 60
    lines = [
        f"## {title}",
        "",
        f"`{command}` took {minutes:.0f} minutes on a machine with {results['cores']} cores.",
        "",
        *_table(results),
        "",
        UNCORRECTED,
    ]
    for content in results["findings"].values():
        lines += ["", *_section(content, results["scale"])]
    return "\n".join(lines) + "\n"


def _table(results: Mapping[str, Any]) -> list[str]:
    lines = [
        "| finding | paper | here | agrees at this scale? | what this scale can and cannot show |",
        "|---" * 5 + "|",
    ]
    for content in results["findings"].values():
        row = content["row"]
        cells = [content["title"], row["paper"], row["here"], row["agrees"], row["limits"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _section(content: Mapping[str, Any], scale: str) -> list[str]:
    lines = [f"### {content['title']}"]
    for figure in content["figures"]:
        lines += ["", f"![{figure['title']}]({FIGURES}/{scale}/{figure['name']}.svg)"]
    for table in content["tables"]:
        lines += ["", table]
    return lines
