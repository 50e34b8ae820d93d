"""The walks of the architecture page are held to the code: each file and function that a step names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPLANATION = ROOT / "docs" / "explanation"
WALKS = ("From a posted checkpoint to a stored metric", "From a caption to a FID")
ROW = re.compile(r"^\| .+ \| `([^`]+)` \| (`[^|]+`) \|$", re.MULTILINE)


def steps_of(page: str, heading: str) -> list[tuple[str, list[str]]]:
    """The steps of a walk: the file of each, and its functions."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [(file, re.findall(r"`([^`]+)`", names)) for file, names in ROW.findall(section)]


def names_in(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    """The functions and classes of a module, and methods as `Class.method`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield within + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_in(node.body, f"{within}{node.name}.")


PAGE = (EXPLANATION / "architecture.md").read_text()
STEPS = [(heading, file, name) for heading in WALKS for file, names in steps_of(PAGE, heading) for name in names]


@pytest.mark.parametrize("heading", WALKS)
def test_every_row_is_a_step(heading: str) -> None:
    """A row of another form would be held to nothing."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    assert len(steps_of(PAGE, heading)) == sum(line.startswith("|") for line in section.splitlines()) - 2 > 15


@pytest.mark.parametrize(("file", "name"), [step[1:] for step in STEPS], ids=[": ".join(step) for step in STEPS])
def test_the_function_of_a_step_exists(file: str, name: str) -> None:
    assert name in set(names_in(ast.parse((ROOT / file).read_text()).body))


@pytest.mark.parametrize("page", sorted(EXPLANATION.glob("*.md")), ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:evalsvc|tests|benchmarks|docs)/[\w./-]+)`", page.read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


PAPER = """pre-trained | random initialisation | image tokens | text tokens | token-type loss | image : text ratio |
MoVQGAN | COCO FID | catastrophic forgetting | unconditional generation | partial fine-tuning |
which parameters are trained | contrastive alignment | nearest text tokens | completions of Table 1's prompts"""
"""The terms of the paper that evalsvc was built around, arXiv 2311.16201."""


def test_the_terms_of_the_paper_are_found() -> None:
    """Whoever comes from the paper searches for its words."""
    text = " ".join(" ".join(page.read_text().split()) for page in EXPLANATION.glob("*.md")).casefold()
    assert [term for term in map(str.strip, PAPER.split("|")) if term.casefold() not in text] == []
