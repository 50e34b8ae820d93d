"""The table of commands: help and completion read it alone, and every command of the package is in it."""

import pkgutil
import sys
from importlib import import_module

import pytest
from console import Command
from typer.main import get_group
from typer.testing import CliRunner

from evalsvc import cli
from evalsvc.cli.program import COMMANDS, app


def test_no_command_is_left_out() -> None:
    modules = [import_module(f"{cli.__name__}.{found.name}") for found in pkgutil.iter_modules(cli.__path__)]
    there = {
        (name, module.__name__)
        for module in modules
        if hasattr(module, "commands")
        for name in get_group(module.commands).commands
    }
    assert there == {(name, entry.module) for name, entry in COMMANDS.items()}


def complete(words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a shell offers in the place of the last word."""
    monkeypatch.setenv("_EVALSVC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    return CliRunner().invoke(app, prog_name="evalsvc").output.split()


def test_names_are_completed_without_the_module_and_options_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "evalsvc.cli.artifacts", raising=False)
    assert complete("evalsvc art", monkeypatch) == ["artifacts"]
    assert "evalsvc.cli.artifacts" not in sys.modules
    assert complete("evalsvc artifacts ke", monkeypatch) == ["keep"]
    assert complete("evalsvc artifacts keep --dr", monkeypatch) == ["--dry-run"]


def test_a_mistyped_name_has_its_near_miss(command: Command) -> None:
    result = command("sumbit")
    assert (result.code, "Did you mean 'submit'" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["submit", "mine", "abc", "x.pt"], "'STEP': Input should be a valid integer"),
        (["submit", "mine", "abc", "x.pt"], ", found 'abc'"),
        (["history", "mine", "--last", "0"], "'--last': Input should be greater than or equal to 1, found '0'"),
        (["runs", "--format", "yaml"], "'--format': 'yaml' is not one of 'table', 'csv', 'json'"),
    ],
)
def test_a_wrong_value_is_shown(command: Command, words: list[str], shown: str) -> None:
    result = command(*words)
    assert result.code == 2
    assert shown in result.err
    assert "Value error" not in result.err
