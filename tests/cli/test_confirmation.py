"""Questions before something is changed for good."""

import io
import sys

import pytest
import typer

from evalsvc.cli.confirmation import confirm, confirm_by_name
from evalsvc.errors import InvalidRequest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for an answer for ever is worse than one that fails."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(InvalidRequest, match=r"the command would queue 5 evaluations, .* give --yes"):
        confirm("queue 5 evaluations", yes=False)
    with pytest.raises(InvalidRequest, match=r"run a would be deleted, and .*; give --yes"):
        confirm_by_name("run a", "a", yes=False)
    confirm("queue 5 evaluations", yes=True)
    confirm_by_name("run a", "a", yes=True)


@pytest.mark.parametrize(("typed", "goes_on"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_only_yes_goes_on(monkeypatch: pytest.MonkeyPatch, typed: str, goes_on: bool) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    if goes_on:
        confirm("queue 5 evaluations", yes=False)
    else:
        with pytest.raises(typer.Exit):
            confirm("queue 5 evaluations", yes=False)


def test_a_deletion_wants_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("run-a\n"))
    confirm_by_name("run run-a", "run-a", yes=False)
    monkeypatch.setattr(sys, "stdin", Terminal("run-b\n"))
    with pytest.raises(InvalidRequest, match="'run-b' was typed instead of 'run-a', so nothing was deleted"):
        confirm_by_name("run run-a", "run-a", yes=False)
