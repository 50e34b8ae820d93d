"""README is held to the code: what it must name. Its blocks and links are held by docs/test_blocks.py."""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from app_in_process import app_on_port
from doc_blocks import DOCS, README, ROOT, find_block, read_blocks
from doc_commands import commands
from tls_servers import server

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


@pytest.fixture
def post_checkpoint() -> Callable[..., object]:
    """The function that a trainer copies. It has nothing but the standard library."""
    [block] = [block for block in read_blocks(README) if "def post_checkpoint" in block.text]
    imported = {
        node.names[0].name.partition(".")[0] for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Import)
    }
    assert imported <= sys.stdlib_module_names
    names: dict[str, Callable[..., object]] = {}
    exec(block.text, names)
    return names["post_checkpoint"]


def test_a_trainer_reads_why_its_checkpoint_was_refused(
    post_checkpoint: Callable[..., object], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It printed `HTTP Error 422: Unprocessable Entity`, and threw the answer with the cure away."""
    with app_on_port(tmp_path / "data") as (url, _):
        assert post_checkpoint("run-a", 5, weights, suites=["loss"], service=url)
        assert capsys.readouterr().out == ""
        for step, fields, words in (
            (6, {"suites": ["los"]}, "checkpoint not posted: no suite is named 'los'; did you mean 'loss'?"),
            (-1, {}, "checkpoint not posted: step: "),
            (5, {"layout": {"text": {"size": 80}}}, "checkpoint not posted: run 'run-a' has a checkpoint at step 5"),
            (7, {"nonsense": 1}, "checkpoint not posted: no field is named 'nonsense'"),
        ):
            assert post_checkpoint("run-a", step, weights, service=url, **fields) is None
            said = capsys.readouterr().out
            assert said.startswith(words)
            assert len(said.splitlines()) == 1
            assert '"detail"' not in said


def test_a_trainer_goes_on_whatever_answers(
    post_checkpoint: Callable[..., object], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(None) as port:  # an HTTP server that is no evalsvc
        assert post_checkpoint("run-a", 5, weights, service=f"http://127.0.0.1:{port}") is None
        assert post_checkpoint("run-a", 5, weights, service=f"https://127.0.0.1:{port}") is None
    assert post_checkpoint("run-a", 5, weights, service="http://127.0.0.1:1") is None
    assert post_checkpoint("run-a", 5, weights, service="http://no-such-host.invalid") is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("checkpoint not posted: ") for line in lines)


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
