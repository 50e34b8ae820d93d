"""README.md and docs/ are held to the code: every block is marked and checked, and every link resolves."""

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_blocks import (
    DOCS,
    MARKS,
    README,
    READMES,
    REFERENCE,
    ROOT,
    Block,
    anchors,
    pages,
    prose,
    read_blocks,
    read_page,
    site_pages,
)
from doc_commands import PREPARE_DATA, check_command, commands

from evalsvc.config import setting_help
from evalsvc.spec.suite import parse_suite

BLOCKS = [block for page in pages() for block in read_blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
VARIABLES = {variable for variable, _, _ in setting_help()}
README_LIMIT = 10_000
"""Bytes that README may have: a stranger reads all of it."""


def of(language: str, *marks: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and block.mark in marks]


def test_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_LIMIT


def test_no_page_installs_what_no_index_has() -> None:
    """`pip install 'evalsvc[worker]'` asks an index that has no evalsvc, or another one."""
    assert [str(block) for block in BLOCKS if re.search(r"pip install '?evalsvc", block.text)] == []
    assert [page.name for page in pages() if re.search(r"`pip install '?evalsvc", read_page(page))] == []


def test_every_block_is_marked() -> None:
    """`sh run`, `sh check`, `text output`, `yaml suite`, …: a reader of the source knows how a block is held."""
    assert [f"{block}: {block.language} {block.mark}" for block in BLOCKS if block.mark not in MARKS] == []
    assert {block.mark for block in BLOCKS} == set(MARKS)
    held = {
        "run": {"sh", "python"},
        "check": {"sh", "python", "yaml", "json", "ini", "toml"},
        "suite": {"yaml"},
        "output": {"text", "json", "csv"},
    }
    assert [f"{block}: {block.language}" for block in BLOCKS if block.language not in held[block.mark]] == []


@pytest.mark.parametrize("block", of("python", "run"), ids=str)
def test_python_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_blocks_name_commands_and_settings_that_exist(block: Block) -> None:
    for words in commands(block.text):
        if words[0] == "exec":
            words = words[1:]
        if Path(words[0]).name == "evalsvc":
            check_command(words[1:])
        if words[:2] == ["python", "benchmarks/prepare_data.py"]:
            check_command(words[2:], PREPARE_DATA)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    assert set(re.findall(r"EVALSVC_[A-Z_]+[A-Z]", block.text)) <= VARIABLES


def test_shell_blocks_are_shell(short_process: None) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    for block in SHELL:
        found = subprocess.run([bash, "-n"], input=block.text, text=True, capture_output=True, check=False)
        assert found.returncode == 0, f"{block}: {found.stderr}"


def test_extras_that_pip_is_asked_for_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in pages():
        for names in re.findall(r"(?:evalsvc|\.)\[([\w,]+)\]", read_page(page)):
            assert set(names.split(",")) <= set(extras), page


@pytest.mark.parametrize("block", of("yaml", "suite"), ids=str)
def test_suites_are_suites(block: Block) -> None:
    parse_suite(block.text, "suite", ROOT)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "check"], ids=str)
def test_documents_parse(block: Block) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.text) is not None
    elif block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "ini":
        configparser.ConfigParser(strict=False).read_string(block.text)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
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
            anchor and file.suffix == ".md" and anchor not in anchors(file)
        ):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_show_nothing_of_other_hosts(page: Path) -> None:
    """A page reads offline: no image, script or style sheet comes from elsewhere."""
    assert re.findall(r"!\[[^]]*\]\(\w+://[^)]*\)|<(?:img|script|link)\b[^>]*", prose(page)) == []


def test_every_page_is_reached_from_the_index() -> None:
    """A page that nothing links to is found by nobody."""
    named = set(re.findall(r"\]\(([^)#\s]+)", prose(DOCS / "index.md")))
    written = {str(page.relative_to(DOCS)) for page in site_pages()} - {"index.md"}
    assert written <= named, written - named
