"""Python processes that evalsvc starts import nothing from the folder in which somebody happens to be. `python -c` and
`python -m` have the current folder first on their path of imports: a `secrets.py` in a pull request ran with the token
of the action, and a `hashlib.py` in the folder of a downloaded model ran at the first chart."""

import ast
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from machines import wait_for
from service_process import ServiceProcess

import evalsvc
from evalsvc import installation
from evalsvc.config import guard_processes

PACKAGE = Path(evalsvc.__file__).parent
ROOT = PACKAGE.parent

MAY_NAME_IT = {PACKAGE / "installation.py", PACKAGE / "doctor" / "bug_report.py"}
"""The one that has the command of a Python process, and the one that prints where Python is."""

UNSAFE = re.compile(r"\bpython[\d.]*[\"']?,?\s+[\"']?-(?!P\b|I\b)[A-Za-z]*[cm]\b")

FILES = [
    ROOT / "action.yml",
    ROOT / "docs" / "how-to" / "rest.md",
    *(path for folder in (".github", "docker") for path in sorted((ROOT / folder).rglob("*")) if path.is_file()),
]
"""Files whose commands run next to files of others. The Makefile and `.ci/run` come with the folder they run in."""


def nodes_of(folder: Path) -> Iterator[tuple[Path, ast.AST]]:
    for file in folder.rglob("*.py"):
        yield from ((file, node) for node in ast.walk(ast.parse(file.read_text())))


def test_one_place_has_the_command_of_a_python_process() -> None:
    assert (sys.executable, "-P") == installation.PYTHON
    assert {file for file in PACKAGE.rglob("*.py") if "sys.executable" in file.read_text()} == MAY_NAME_IT


def test_benchmarks_start_python_without_the_current_folder() -> None:
    unsafe = [
        f"{file.name}:{node.lineno}"
        for file, node in nodes_of(ROOT / "benchmarks")
        if isinstance(node, ast.List)
        if not {"soak", "tests"} & {*file.relative_to(ROOT / "benchmarks").parts}  # they start what tests start
        if {"-c", "-m"} & {item.value for item in node.elts if isinstance(item, ast.Constant)}
        and not (isinstance(node.elts[1], ast.Constant) and node.elts[1].value == "-P")
    ]
    assert unsafe == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_commands_next_to_files_of_others_are_safe(file: Path) -> None:
    lines = file.read_text(errors="replace").splitlines()
    assert [line for line in lines if UNSAFE.search(line)] == []


def test_no_message_has_a_user_start_python_with_the_current_folder() -> None:
    """The command that converts a checkpoint is typed where the checkpoint is, beside the files of its author."""
    texts = [node.value for _, node in nodes_of(PACKAGE) if isinstance(getattr(node, "value", None), str)]
    unsafe = [text for text in texts if UNSAFE.search(text) and "`python" not in text]
    assert unsafe == [], "but for docstrings that explain it"


@pytest.mark.parametrize("line", ["python -c 'a'", "python3 -m pip", 'CMD ["python", "-c", "a"]', "python3.12 -Bc 'a'"])
def test_an_unsafe_command_is_noticed(line: str) -> None:
    assert UNSAFE.search(line)
    assert not UNSAFE.search(re.sub(r"-(B?)([cm])", r"-P -\1\2", line).replace('"-P -', '"-P", "-'))


def test_libraries_that_start_python_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask starts its workers by multiprocessing, which runs `python -c` and repeats no option of evalsvc."""
    monkeypatch.setattr(os, "environ", {"PYTHONSAFEPATH": "", "GOMP_SPINCOUNT": "7"})
    guard_processes()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "7"), "the user's own choice"


PANIC = """
import json
from evalsvc.config import guard_processes
from tokenizers import Tokenizer
guard_processes()
tokenizer = dict.fromkeys(("padding", "normalizer", "post_processor", "decoder"))
tokenizer |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
tokenizer["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
tokenizer["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
try:
    Tokenizer.from_str(json.dumps(tokenizer)).encode("a b c d e f")
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.usefixtures("child_process")
def test_a_library_that_panics_writes_no_backtrace_into_the_log() -> None:
    """A tokenizer of a submitter wrote eighty lines for each shard, with folders of the machine that built Python."""
    command = [*installation.PYTHON, "-c", PANIC]
    environment = os.environ | {"RUST_BACKTRACE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "PanicException\n", done.stderr
    assert "panicked" in done.stderr
    assert len(done.stderr.splitlines()) < 6


STANDARD = ("base64", "copyreg", "hashlib", "json", "pickle", "random", "secrets", "selectors", "socket", "struct")
"""Modules that processes import early, and that are no part of the interpreter itself."""

TRAP = "open({marker!r}, 'w').close()\nraise SystemExit('imported from the current folder')\n"


@pytest.mark.usefixtures("child_process")
def test_a_service_imports_nothing_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service, its workers, the search for cards and the engine of charts, in the folder of a downloaded model."""
    hostile, marker = tmp_path / "model", tmp_path / "marker"
    hostile.mkdir()
    for name in (*STANDARD, "torch", "vl_convert", "evalsvc"):
        (hostile / f"{name}.py").write_text(TRAP.format(marker=str(marker)))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(hostile)
    script = tmp_path / "evalsvc"
    script.write_text("from evalsvc.cli.program import main\nif __name__ == '__main__':\n    main()\n")
    service = ServiceProcess(tmp_path / "data", "--devices", "cpu")
    service.program = (str(script),)  # as pip installs it, without an option that processes of libraries inherit
    with service:
        wait_for(lambda: service.ask("GET", "/readyz").status_code == 200, "a worker has started")
        series = [{"metric": "a/b", "step": [1, 2], "value": [1, 2]}]
        service.request("POST", "/v1/runs/run-a/metrics", json={"source": "x", "series": series})
        chart = httpx2.get(f"{service.url}/panels/curve.svg?run=run-a&metric=a/b", timeout=60)
        assert chart.content.startswith(b"<svg")
    assert not marker.exists()


def test_a_process_that_is_not_announced_is_refused() -> None:
    """The other tests of this file start what they announce."""
    with pytest.raises(AssertionError, match="must say so, by the fixture `child_process`"):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    with pytest.raises(AssertionError, match="must say so, by the fixture `child_process`"):
        multiprocessing.get_context("spawn").Process(target=print).start()


@pytest.mark.parametrize("kind", ["sqlite", "migrated_postgresql"])
def test_a_parameter_that_names_a_fixture_moves_a_test_to_its_tier(request: pytest.FixtureRequest, kind: str) -> None:
    assert (request.node.get_closest_marker("full") is not None) is (kind == "migrated_postgresql")
