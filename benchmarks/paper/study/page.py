"""The page of the findings: a part for each scale, between two markers, with table, figures, commands and time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalsvc.files.atomic import write_whole
from study.claims import Agrees, Claim, verdicts
from study.measured import short

HEAD = "# The paper's findings\n"

TITLES = {
    "miniature": ("In miniature", "make paper"),
    "real": ("On a real language model", "make paper-real"),
    "quick": ("In the shortest form", "python benchmarks/paper/paper.py --quick"),
}
"""Heading and command of each scale's part."""

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
            shutil.copyfile(figures / figure["file"], folder / figure["file"])
    part = part_of(results)
    begin, end = part.splitlines()[0], part.splitlines()[-1]
    before = path.read_text() if path.exists() else HEAD
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    text = pattern.sub(lambda _: part, before) if pattern.search(before) else f"{before.rstrip()}\n\n{part}\n"
    write_whole(path, text.encode(), mode=0o644)


def part_of(results: Mapping[str, Any]) -> str:
    """Return the part of a scale, with its markers."""
    scale, findings = results["scale"], results["findings"]
    title, command = TITLES[scale]
    agreed = agreements(results)
    against = [f"- {content['against']}" for content in findings.values() if content["against"]]
    lines = [
        f"<!-- begin {scale} -->",
        "",
        f"## {title}",
        "",
        f"Computed by `{command}`.",
        "",
        *against,
        *([""] if against else []),
        "| finding | paper | here | agrees at this scale? | what this scale can and cannot show |",
        "|---" * 5 + "|",
    ]
    for name, content in findings.items():
        row = content["row"]
        cells = [content["title"], row["paper"], row["here"], agreed[name], row["limits"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for content in findings.values():
        lines += ["", *_section(content, scale)]
    return "\n".join([*lines, "", f"<!-- end {scale} -->"])


def agreements(results: Mapping[str, Any]) -> Mapping[str, Agrees]:
    """Return the verdict on each finding. The quick scale shows that all of it works, and measures nothing."""
    known = results["scale"] != "quick"
    claims = {name: content["claims"] if known else [] for name, content in results["findings"].items()}
    return verdicts({name: [Claim(**claim) for claim in each] for name, each in claims.items()})


def _claims(content: Mapping[str, Any]) -> list[str]:
    claims = [Claim(**claim) for claim in content["claims"]]
    lines = ["", "| claim | by seed | mean, 95 % | bound | p of yes | p of no |", "|---" * 6 + "|"]
    for claim in claims:
        bound = f"± {short(claim.bound)}" if claim.region == "within" else f"{claim.region} {short(claim.bound)}"
        mean = f"{short(claim.value)} ({' to '.join(map(short, claim.interval))})"
        chances = " | ".join(f"{p:.2g}" for p in claim.p_values)
        lines.append(f"| {claim.says} | {', '.join(map(short, claim.values))} | {mean} | {bound} | {chances} |")
    return lines if claims else []


def _section(content: Mapping[str, Any], scale: str) -> list[str]:
    lines = [f"### {content['title']}"]
    for figure in content["figures"]:
        lines += ["", f"![{figure['title']}]({FIGURES}/{scale}/{figure['file']})"]
    lines += _claims(content)
    for table in content["tables"]:
        lines += ["", table]
    return lines
