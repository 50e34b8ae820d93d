"""`evalsvc` itself: the table of commands, help at 80 columns, options that are spelled alike, and how it ends."""

import io
import pkgutil
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
from console import Shell
from typer.main import get_command, get_group
from typer.testing import CliRunner

from evalsvc import __version__, cli
from evalsvc.cli.program import COMMANDS, app

ROOT: Any = get_command(app)


def words_of_commands() -> Iterator[tuple[str, ...]]:
    for name, announced in ROOT.commands.items():
        yield (name,)
        yield from ((name, member) for member in getattr(announced.load(), "commands", {}))


WORDS = list(words_of_commands())


@cache
def loaded(words: tuple[str, ...]) -> Any:
    command = ROOT.commands[words[0]].load()
    return command.commands[words[1]] if len(words) > 1 else command


def help_of(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        ROOT.main([*words, "-h"], prog_name="evalsvc")
    assert ended.value.code == 0
    return printed.getvalue()


def options(words: tuple[str, ...]) -> dict[str, Any]:
    return {name: item for item in loaded(words).params if item.param_type_name == "option" for name in item.opts}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("short_process")
def test_help_is_quick_and_imports_little() -> None:
    heavy = {"torch", "numpy", "fastapi", "starlette", "sqlalchemy", "distributed", "dask", "pydantic", "uvicorn"}
    code = (
        "import sys; sys.argv = ['evalsvc', '--help']\n"
        "from evalsvc.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print('heavy:', sorted({heavy} & set(sys.modules)))"
    )
    seconds = 1.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, which others may want at the same time.
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if seconds < 0.5:
            break
    assert "heavy: []" in found.stdout
    assert [name for name in COMMANDS if f" {name} " not in found.stdout] == []
    assert seconds < 0.5


@pytest.mark.usefixtures("short_process")
def test_version_in_short_and_in_full(evalsvc: Shell) -> None:
    assert evalsvc("--version").out == f"evalsvc {__version__}\n"
    for line in ("--version --verbose", "--verbose --version"):
        lines = evalsvc(line).out.splitlines()
        assert lines[0] == f"evalsvc {__version__}"
        assert {"commit", "python", "platform", "package"} <= {line.partition(":")[0] for line in lines}


def test_interrupt(evalsvc: Shell) -> None:
    with mock.patch("evalsvc.client.Client.headline", side_effect=KeyboardInterrupt):
        result = evalsvc("history run-a")
    assert (result.code, "Traceback" in result.err) == (130, False)


def test_unknown_setting(evalsvc: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_PROT", "80")
    monkeypatch.setenv("EVALSVC_SERVICE_HOST", "10.0.0.1")
    result = evalsvc("certificates certificates")
    assert (result.code, len(result.out.splitlines())) == (0, 3)
    unknown = "EVALSVC_PROT is not a setting of evalsvc and is ignored; did you mean EVALSVC_PORT?"
    assert result.err == f"warning: {unknown}\n"


def test_no_command_is_left_out() -> None:
    modules = [import_module(f"{cli.__name__}.{found.name}") for found in pkgutil.iter_modules(cli.__path__)]
    there = {
        (name, module.__name__)
        for module in modules
        if hasattr(module, "commands")
        for name in get_group(module.commands).commands
    }
    assert there == {(name, entry.module) for name, entry in COMMANDS.items()}


def test_names_are_completed_without_the_module_and_options_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "evalsvc.cli.artifacts", raising=False)
    for words, offered in (("art", "artifacts"), ("artifacts ke", "keep"), ("artifacts keep --dr", "--dry-run")):
        assert ("evalsvc.cli.artifacts" in sys.modules) == (offered == "--dry-run")
        line = {"COMP_WORDS": f"evalsvc {words}", "COMP_CWORD": str(words.count(" ") + 1)}
        environment = {"_EVALSVC_COMPLETE": "complete_bash", **line}
        assert CliRunner().invoke(app, prog_name="evalsvc", env=environment).output.split() == [offered]


def test_the_list_of_commands_is_one_screen(narrow: None) -> None:
    lines = help_of().splitlines()
    assert len(lines) <= 50, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    shown = [line.split()[0] for line in lines if re.match(r"  [a-z]+  +[A-Z]", line)]
    assert shown == list(COMMANDS), "a name's line is whole, and begins a sentence"


SPELLINGS = {
    "--out": "--output",
    "--out-file": "--output",
    "--file": "--output",
    "--db": "--database-url",
    "--database": "--database-url",
    "--data": "--data-dir",
    "--data-folder": "--data-dir",
    "--service-url": "--url",
    "--address": "--url",
    "--as-json": "--format json",
    "--csv": "--format csv",
    "--force-yes": "--yes",
    "--json": "--format json or --output FILE",
}
"""Options by which other programs mean what is called otherwise here."""

SHOWING = {
    *("list", "show", "status", "tasks", "metrics", "completions", "history", "compare", "doctor", "runs", "plan"),
    *("checkpoints", "evaluations", "items", "protocol"),
}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_is_whole_and_options_are_spelled_alike(words: tuple[str, ...], narrow: None) -> None:
    """JSON was `--json`, `--json FILE` and `--format json`, and not to be had of twelve commands."""
    text = help_of(*words)
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 80 and not re.match(r"  --[a-z-]+ <", line)] == []
    assert re.findall(r"default: \(|<list\[|range>", text) == [], "a stranger need not know typer's words"
    assert "…" not in re.sub(r"s3://…|\{…\}", "", text)
    assert [line for line in lines if re.search(r"[a-z]\.\.\.$", line) and not line.startswith("Usage")] == []
    assert [item.name for item in loaded(words).params if not item.help] == []
    found = options(words)
    assert [name for name, item in found.items() if not item.hidden and name not in text] == []
    assert [f"{name} is called {SPELLINGS[name]}" for name in found if name in SPELLINGS] == []
    assert words[-1] not in SHOWING or "--format" in found
    if "--format" in found:
        assert list(found["--format"].type_descriptor.choices) == ["table", "csv", "json"]
        assert found["--format"].default == "table"
    if "--data-dir" in found and words[0] not in ("demo", "reference"):
        assert "--database-url" in found, "what opens the store takes both"


def test_an_option_of_several_commands_has_one_type() -> None:
    every = [entry for words in WORDS for entry in options(words).items()]
    for shared in ("--url", "--output", "--data-dir", "--database-url", "--suites", "--device", "--threads", "--yes"):
        assert len({str(item.type_descriptor.annotation) for name, item in every if name == shared}) == 1, shared


def test_h_is_help(evalsvc: Shell) -> None:
    shown = evalsvc("verify -h").out
    assert shown == evalsvc("verify --help").out
    assert shown.startswith("Usage: evalsvc verify [OPTIONS] [machine|RUN@STEP]")
