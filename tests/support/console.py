"""What a command of the console script, or of a program in benchmarks/, gives."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evalsvc.config import setting_help


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(self.out.splitlines()))

    @property
    def cells(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


Command = Callable[..., Result]

Shell = Callable[[str], Result]


def command_in_process(name: str, main: Any, folder: Path, monkeypatch: Any, capfd: Any) -> Command:
    """Return what runs a program in this process, in a folder and an environment of the test's own."""
    for variable, _, _ in setting_help():
        monkeypatch.setenv(variable, "")  # as good as not set, and `run` cannot leave its own behind
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capfd.readouterr()
        code = exited.value.code
        return Result(0 if code is None else int(code), captured.out, captured.err)

    return run
