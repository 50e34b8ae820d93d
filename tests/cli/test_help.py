"""What a stranger reads first: the help of every command at 80 columns, and options that are spelled alike."""

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import pytest
from console import Command
from typer.main import get_command

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


def options(words: tuple[str, ...]) -> Iterator[Any]:
    return (item for item in loaded(words).params if item.param_type_name == "option")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_list_of_commands_is_one_screen() -> None:
    lines = help_of().splitlines()
    assert len(lines) <= 50, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    shown = [line.split()[0] for line in lines if re.match(r"  [a-z]+  +[A-Z]", line)]
    assert shown == list(COMMANDS), "a name's line is whole, and begins a sentence"


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_fits_and_nothing_is_cut(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    lines = text.splitlines()
    too_long = [line for line in lines if len(line) > 80 and not re.match(r"  --[a-z-]+ <", line)]
    assert too_long == []
    assert re.findall(r"default: \(|<list\[|range>", text) == [], "a stranger need not know typer's words"
    assert "…" not in re.sub(r"s3://…|\{…\}", "", text)
    assert [line for line in lines if re.search(r"[a-z]\.\.\.$", line) and not line.startswith("Usage")] == []
    for item in options(words):
        assert item.hidden or all(name in text for name in item.opts)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_parameter_has_its_help(words: tuple[str, ...]) -> None:
    assert [item.name for item in loaded(words).params if not item.help] == []


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
}
"""Options by which other programs mean what is called otherwise here."""

FORMATS = ["table", "csv", "json"]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_options_are_spelled_alike(words: tuple[str, ...]) -> None:
    """JSON was `--json`, `--json FILE` and `--format json`, and not to be had of twelve commands."""
    found = {name: item for item in options(words) for name in item.opts}
    assert [f"{name} is called {SPELLINGS[name]}" for name in found if name in SPELLINGS] == []
    assert "--json" not in found, "--json is written --format json or --output FILE"
    if "--format" in found:
        choices = list(found["--format"].type_descriptor.choices)
        assert choices == FORMATS
        assert found["--format"].default == "table"
    if "--data-dir" in found and words[0] not in ("demo", "reference"):
        assert "--database-url" in found, "what opens the store takes both"


def test_an_option_of_several_commands_has_one_type() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    shared = {"--url", "--output", "--data-dir", "--database-url", "--suites", "--device", "--threads", "--yes"}
    for words in WORDS:
        for item in options(words):
            for name in shared.intersection(item.opts):
                kinds[name].add(str(item.type_descriptor.annotation))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert kinds.keys() == shared


SHOWING = {
    *("list", "show", "status", "tasks", "metrics", "completions", "history", "compare", "doctor", "runs", "plan"),
    *("checkpoints", "evaluations", "items", "protocol"),
}


@pytest.mark.parametrize("words", [words for words in WORDS if words[-1] in SHOWING], ids=" ".join)
def test_what_is_shown_is_to_be_had_as_json(words: tuple[str, ...]) -> None:
    assert "--format" in {name for item in options(words) for name in item.opts}


def test_h_is_help(command: Command) -> None:
    assert command("history", "-h").out == command("history", "--help").out
    assert command("verify", "-h").out.startswith("Usage: evalsvc verify [OPTIONS] [machine|RUN@STEP]")
