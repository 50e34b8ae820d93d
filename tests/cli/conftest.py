"""The console script in this process, and a service that it finds."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import app_on_port
from console import Command, Result
from sqlalchemy import delete

from evalsvc.cli import main
from evalsvc.config import setting_help
from evalsvc.store.tables import Base


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the console script in this process, in an environment and folder of the test's own."""
    for variable, _, _ in setting_help():
        monkeypatch.setenv(variable, "")  # as good as not set, and `run` cannot leave its own behind
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["evalsvc", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capfd.readouterr()
        code = exited.value.code
        return Result(0 if code is None else int(code), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with app_on_port(tmp_path_factory.mktemp("service")) as (url, state):
        yield url, state


@pytest.fixture
def service(running: tuple[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of a running service that does its work at once; empty, and the one that the client finds."""
    url, state = running
    with state.store.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    state.coordinator.working, state.coordinator.error = False, None
    monkeypatch.setenv("EVALSVC_URL", url)
    return state
