"""README is held to the code: what it must name, what it links to, and its examples run."""

import re
from pathlib import Path

import pytest

from evalsvc.spec import catalog
from evalsvc.spec.suite import suite_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("name", [*suite_files(None), *catalog.COMPONENTS["tasks"]])
def test_every_suite_and_task_is_named(name: str) -> None:
    assert f"`{name}`" in README


def test_every_file_of_the_package_is_in_the_tree() -> None:
    tree = next(block for block in README.split("```\n") if block.startswith("evalsvc/"))
    names = {path.name for path in (ROOT / "evalsvc").glob("*.py")} - {"__init__.py"}
    names |= {path.name + "/" for path in (ROOT / "evalsvc").iterdir() if path.is_dir() and path.name[0] != "_"}
    missing = [name for name in sorted(names) if not re.search(rf"(^|\s){re.escape(name)}", tree)]
    assert missing == []


def test_links_to_files_resolve() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_examples_run(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
