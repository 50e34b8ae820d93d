"""Refuses processes that a test starts without a fixture that says so."""

import multiprocessing.process
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REFUSED = "a test that starts a process must say so, by the fixture `child_process` (see conftest.py)"


class ProcessGuard:
    """Watches this interpreter for another Python that is started, and for processes of `multiprocessing`.

    Other programs are let through: libraries ask small ones about the machine.
    """

    def __init__(self) -> None:
        self._allowed = True
        sys.addaudithook(self._hear)
        self._start = multiprocessing.process.BaseProcess.start
        guard = self

        def start(process: Any) -> None:
            guard._check()
            guard._start(process)

        multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]

    @contextmanager
    def watching(self, allowed: bool) -> Iterator[None]:
        before, self._allowed = self._allowed, allowed
        try:
            yield
        finally:
            self._allowed = before

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and sys.executable in (arguments[0], *map(str, arguments[1][:1])):
            self._check()

    def _check(self) -> None:
        if not self._allowed:
            raise AssertionError(REFUSED)
