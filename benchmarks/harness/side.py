"""A side of the comparison: a process that evaluates with the code of one tree, when it is told to.

Both sides live for the whole run and take turns, so that what another process takes from the machine, and what the
processor's clock does, hits both. A process of its own for each tree is what lets one run hold two versions of evalsvc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from evalsvc.config import PREFIX, Settings
from evalsvc.errors import InternalError
from evalsvc.spec.documents.results import ResultDocument
from harness.suite import Bench, Task

PROGRAM = Path(__file__).with_name("side_process.py")

THREADS = 1
"""CPU threads of a side. More would end with the fork of `side_process`: a child has none of its parent's threads."""

SHOWN = 400
"""Most characters of a process's last line in a message."""


@dataclass(frozen=True)
class Turn:
    """Seconds of each call of a turn."""

    cpu: list[float]
    wall: list[float]


class Timer(Protocol):
    """What times a task: a `Side`, or a double of a test."""

    def warm(self, task: Task) -> None:
        """Evaluate a task, so that a later call loads nothing. Raises InternalError if the code cannot."""
        ...

    def time(self, task: Task, calls: int) -> Turn:
        """Evaluate a task `calls` times. Raises InternalError if the code cannot."""
        ...


class Side:
    """A process with the code of a tree."""

    def __init__(self, name: str, tree: Path, bench: Bench, work: Path, *, slower: float = 0.0) -> None:
        """`tree` is the folder that holds `evalsvc`; `slower` makes each call longer by this share, for a drill."""
        self.name = name
        self._bench = bench
        self._folder = work / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = self._folder / "side.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(tree), str(slower)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(tree, self._folder),
                cwd=self._folder,
            )
        _pin(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process: it ends by itself when nobody writes to it any more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def warm(self, task: Task) -> None:
        """Evaluate a task, so that later calls find all modules loaded.

        The weights have another path than in later calls, each of which then loads the model into memory of its own.

        Raises:
            InternalError: the code of this side cannot evaluate the task, or its process has ended.
        """
        alias = self._folder / "alias"
        run = self._bench.weights.parents[1]
        if not alias.is_symlink():
            alias.symlink_to(run, target_is_directory=True)
        self._ask({"what": "warm", "tasks": [task], "weights": str(alias / self._bench.weights.relative_to(run))})

    def time(self, task: Task, calls: int) -> Turn:
        """Evaluate a task `calls` times, and return the seconds of each call.

        Raises:
            InternalError: the code of this side cannot evaluate the task, or its process has ended.
        """
        answer = self._ask({"what": "time", "tasks": [task], "calls": calls})
        return Turn(answer["cpu"], answer["wall"])

    def evaluate(self, weights: Path) -> ResultDocument:
        """Evaluate the tasks of `quality`; a task that fails is an entry of `errors`.

        Raises:
            InternalError: the code of this side refuses the tasks, or its process has ended.
        """
        answer = self._ask({"what": "evaluate", "tasks": list(self._bench.quality), "weights": str(weights)})
        return ResultDocument.model_validate(answer["result"])

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        common = {
            "folder": str(self._bench.folder),
            "weights": str(self._bench.weights),
            "layout": str(self._bench.layout),
            "base": None if self._bench.base is None else str(self._bench.base),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({**common, **question}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise InternalError(f"the process of the {self.name} has ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InternalError(f"the code of the {self.name} cannot evaluate: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        printed = self._log.read_text(errors="replace").strip()
        return printed.rpartition("\n")[2][-SHOWN:] or "it printed nothing"


def _pin(process: int) -> None:
    """Bind a process to one core, the same for both sides, where the system can.

    Sides never run at the same time. Each on a core of its own would have a neighbour of its own for the whole run,
    which moves even the processor's clock, by the caches that both use.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, sorted(os.sched_getaffinity(0))[-THREADS:])


def _environment(tree: Path, folder: Path) -> dict[str, str]:
    """Return the environment of a side: settings of whoever calls must not move a number, but for assets and device."""
    assets, device = Settings.load().assets_path, os.environ.get(f"{PREFIX}DEVICES", "cpu")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    settings = {"ASSETS": str(assets.resolve()), "DEVICES": device, "DATA_DIR": str(folder), "THREADS": str(THREADS)}
    return {
        **kept,
        **{PREFIX + name: value for name, value in settings.items()},
        "OMP_NUM_THREADS": str(THREADS),
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
