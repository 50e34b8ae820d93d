"""README is held to the code: what it must name. Its blocks and links are held by docs/test_blocks.py."""

import re

import pytest
from doc_blocks import DOCS, README, ROOT, find_block, read_blocks
from doc_commands import commands

from evalsvc.spec import catalog
from evalsvc.spec.suite import suite_files


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_every_task_is_named(kind: str) -> None:
    assert f"`{kind}`" in README.read_text()


@pytest.mark.parametrize("name", suite_files(None))
def test_every_suite_is_named_where_suites_are_written(name: str) -> None:
    assert f"`{name}`" in (DOCS / "how-to" / "write-a-suite.md").read_text()


def test_every_file_of_the_package_is_in_the_tree() -> None:
    tree = find_block(README, "text", "catalog")
    names = {path.name for path in (ROOT / "evalsvc").glob("*.py")} - {"__init__.py"}
    names |= {path.name + "/" for path in (ROOT / "evalsvc").iterdir() if path.is_dir() and path.name[0] != "_"}
    missing = [name for name in sorted(names) if not re.search(rf"(^|\s){re.escape(name)}", tree)]
    assert missing == []


def test_the_first_metric_takes_few_commands_and_words() -> None:
    """What a stranger reads and types from the first line of README to a metric of a file of theirs."""
    before = README.read_text().partition("\nFor a curve,")[0]
    [block] = [block for block in read_blocks(README) if "evalsvc suites new" in block.text]
    assert [words[:2] for words in commands(block.text)] == [
        ["pip", "install"],
        ["evalsvc", "suites"],
        ["evalsvc", "suites"],
        ["evalsvc", "run"],
    ]
    assert len(before.split()) <= 600
