"""The console script in this process, and a service that it finds."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import app_on_port
from console import Command, Shell, command_in_process
from migrated import empty

from evalsvc.cli import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the console script in this process, in an environment and folder of the test's own."""
    return command_in_process("evalsvc", main, tmp_path, monkeypatch, capfd)


@pytest.fixture
def evalsvc(command: Command) -> Shell:
    return lambda line: command(*shlex.split(line))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with app_on_port(tmp_path_factory.mktemp("service")) as (url, state):
        yield url, state


@pytest.fixture
def service(running: tuple[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of a running service that does its work at once; empty, and the one that the client finds."""
    url, state = running
    empty(state.store)
    state.coordinator.working, state.coordinator.error = False, None
    monkeypatch.setenv("EVALSVC_URL", url)
    return state


@pytest.fixture
def wide_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a row be one line, for tests of what is in it."""
    monkeypatch.setattr("evalsvc.cli.terminal.PIPE", 1000)
