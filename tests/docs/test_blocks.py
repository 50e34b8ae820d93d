"""README.md and docs/ are held to the code: every block is marked and checked, and every link resolves."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import doc_blocks
import pytest
import yaml
from doc_blocks import DOCS, README, READMES, REFERENCE, ROOT, Block, pages, prose, read_page, site_pages
from doc_commands import PREPARE_DATA, check_command, commands

from evalsvc.config import setting_help
from evalsvc.spec.suite import parse_suite

BLOCKS = [block for page in pages() for block in doc_blocks.read_blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
VARIABLES = {variable for variable, _, _ in setting_help()}


def test_readme_is_short_and_no_page_installs_what_no_index_has() -> None:
    """A stranger reads all of README; `pip install 'evalsvc[worker]'` asks an index that has no evalsvc."""
    assert len(README.read_bytes()) <= 10_000
    assert [str(block) for block in BLOCKS if re.search(r"pip install '?evalsvc", block.text)] == []
    assert [page.name for page in pages() if re.search(r"`pip install '?evalsvc", read_page(page))] == []


def test_every_block_is_marked() -> None:
    """`sh run`, `sh check`, `text output`, `yaml suite`, …: a reader of the source knows how a block is held."""
    assert [f"{block}: {block.language} {block.mark}" for block in BLOCKS if block.mark not in doc_blocks.MARKS] == []
    assert {block.mark for block in BLOCKS} == set(doc_blocks.MARKS)
    held = {
        "run": {"sh", "python"},
        "check": {"sh", "python", "yaml", "json", "ini", "toml"},
        "suite": {"yaml"},
        "output": {"text", "json", "csv"},
    }
    assert [f"{block}: {block.language}" for block in BLOCKS if block.language not in held[block.mark]] == []


@pytest.mark.parametrize("block", [it for it in BLOCKS if (it.language, it.mark) == ("python", "run")], ids=str)
def test_python_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_blocks_name_commands_that_exist(block: Block) -> None:
    for words in commands(block.text):
        if words[0] == "exec":
            words = words[1:]
        if Path(words[0]).name == "evalsvc":
            check_command(words[1:])
        if words[:2] == ["python", "benchmarks/prepare_data.py"]:
            check_command(words[2:], PREPARE_DATA)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    for line in re.findall(r"""['"]exec evalsvc ([^'"]+)['"]""", block.text):  # what another program is given to run
        check_command(shlex.split(line))


def test_shell_blocks_are_shell(short_process: None) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    for block in SHELL:
        found = subprocess.run([bash, "-n"], input=block.text, text=True, capture_output=True, check=False)
        assert found.returncode == 0, f"{block}: {found.stderr}"


def test_settings_and_extras_that_pages_name_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in pages():
        assert set(re.findall(r"EVALSVC_[A-Z_]+[A-Z]", read_page(page))) <= VARIABLES, page
        for names in re.findall(r"(?:evalsvc|\.)\[([\w,]+)\]", read_page(page)):
            assert set(names.split(",")) <= set(extras), page


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark in ("check", "suite")], ids=str)
def test_documents_parse(block: Block) -> None:
    PARSERS["suite" if block.mark == "suite" else block.language](block.text)


PARSERS: dict[str, Callable[[str], object]] = {
    "yaml": lambda text: len(yaml.safe_load(text)),  # an empty block is refused
    "python": lambda text: compile(text, "block", "exec"),
    "json": json.loads,
    "toml": tomllib.loads,
    "ini": configparser.ConfigParser(strict=False).read_string,
    "sh": str,  # held by the tests of shell blocks
    "suite": lambda text: parse_suite(text, "suite", ROOT),
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve_and_nothing_of_other_hosts_is_shown(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if page not in READMES and not file.is_relative_to(DOCS):
            broken.append(f"{target} leads out of docs/, where the site has no page")
        elif page in READMES and file in REFERENCE:
            broken.append(f"{target} is a page of the site alone; name the command that prints it")
        elif not (file.exists() or file in REFERENCE) or (
            anchor and file.suffix == ".md" and anchor not in doc_blocks.anchors(file)
        ):
            broken.append(target)
    assert broken == []
    # A page reads offline: no image, script or style sheet comes from elsewhere.
    text = prose(page)
    assert re.findall(r"!\[[^]]*\]\(\w+://[^)]*\)|<(?:script|link)\b[^>]*|<(?:img|source)\b[^>]*//[^>]*", text) == []


def test_every_page_is_reached_from_the_index() -> None:
    """A page that nothing links to is found by nobody."""
    named = set(re.findall(r"\]\(([^)#\s]+)", prose(DOCS / "index.md")))
    written = {str(page.relative_to(DOCS)) for page in site_pages()} - {"index.md"}
    assert written <= named, written - named
