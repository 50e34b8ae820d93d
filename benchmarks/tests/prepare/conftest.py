from pathlib import Path

import prepare_data
import pytest
from console import Command, command_in_process


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None, many_cases: None) -> None:
    """Every test of this folder runs on one thread, in the second tier: the program is no part of the package."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the program `prepare_data.py` in this process."""
    return command_in_process("prepare_data.py", prepare_data.main, tmp_path, monkeypatch, capfd)
