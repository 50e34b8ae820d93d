"""Progress and interim results, printed on stderr while a command waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from evalsvc.cli.printer import error_bar, shown_number
from evalsvc.cli.terminal import one_line, say
from evalsvc.cli.wording import duration
from evalsvc.messages import LookResult
from evalsvc.spec.documents import Evaluation, Interim
from evalsvc.spec.protocol import labels
from evalsvc.spec.visible_text import visible_line

if TYPE_CHECKING:
    from evalsvc.worker.local import TaskLook

EVERY = 10.0
"""Seconds between two lines about the progress without a terminal. Each pause without news doubles the next one."""

Transfer = Callable[[str, int, int | None], None]
"""Function that gets the name of a transfer, the bytes that are transferred, and all bytes if known."""


class _TerminalBars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ids: dict[str, TaskID] = {}

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        """Show the progress of a task in units of work; `total` is None until the task is planned."""
        if task not in self._ids:
            self._ids[task] = self._progress.add_task(visible_line(task), total=None, unit=visible_line(unit))
        self._progress.update(self._ids[task], completed=done, total=total, unit=visible_line(unit))


class ProgressLines:
    """Lines about the progress of all tasks, for a log: one every few seconds while there is news, and one at the end.

    A thread prints the lines, since a task may report nothing for longer than the time between two lines.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._every = every
        self._begun = time.monotonic()
        self._tasks: dict[str, str] = {}
        self._planned: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True, name="progress")

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        of = "" if total is None else f" of {total:,}"
        progress = f"{done:,}{of} {one_line(unit)}".rstrip()
        if total is None and not done:
            progress = one_line(unit) or "waits, or is being planned"
        elif not done:
            progress += ", loading or at work on the first"
        if total is not None:
            self._planned.add(task)
        self._tasks = self._tasks | {task: f"{one_line(task)} {progress}"}

    def __enter__(self) -> ProgressLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._tasks = {task: line for task, line in self._tasks.items() if task in self._planned}
        if self._tasks:  # what failed while it was planned has an error of its own
            self._print_line()

    def _print(self) -> None:
        printed: dict[str, str] | None = None
        due, pause = self._begun, self._every
        while not self._over.wait(self._every):
            pause = self._every if self._tasks != printed else pause
            if self._tasks == printed and time.monotonic() < due:
                continue
            printed = self._tasks
            self._print_line()
            pause *= 2
            due = time.monotonic() + pause

    def _print_line(self) -> None:
        progress = "; ".join(self._tasks.values()) or "nothing has begun yet"
        say(f"after {duration(time.monotonic() - self._begun)}: {progress}", err=True)


Bars: TypeAlias = _TerminalBars | ProgressLines


@contextmanager
def show_bars() -> Iterator[Bars]:
    """Show progress on stderr, since stdout is for results: bars in a terminal, else a line every `EVERY` seconds."""
    if not sys.stderr.isatty():
        with ProgressLines(EVERY) as lines:
            yield lines
        return
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        yield _TerminalBars(progress)


@contextmanager
def show_transfer() -> Iterator[Transfer]:
    """Yield a function that shows, as `show_bars` does, how many MB of a file are transferred."""
    totals: dict[str, int] = {}
    with show_bars() as bars:

        def report(name: str, done: int, total: int | None) -> None:
            if total is not None:
                totals[name] = total
            # Rounded up, so that a small file has one.
            bars.show(name, -(-done // 1_000_000), None if total is None else -(-total // 1_000_000), "MB")

        yield report
        # A report precedes the part of the file that it counts, so the last part has no report.
        for name, total in totals.items():
            report(name, total, total)


def print_interim(look: TaskLook) -> None:
    if isinstance(look.result.output, LookResult):
        interim = Interim.model_validate({"done": look.units, **asdict(look.result.output)})
        _say_so_far(f"{look.task} after {look.units:,} of {look.total:,} {look.unit}", interim)


def print_news() -> Callable[[Evaluation], None]:
    """Return a function that prints, on stderr, each interim result and each retry of an evaluation once."""
    printed: set[tuple[object, ...]] = set()

    def is_new(*news: object) -> bool:
        known = news in printed
        printed.add(news)
        return not known

    def report(evaluation: Evaluation) -> None:
        for task in evaluation.tasks:
            retry, interim = task.retry, task.interim
            if retry is not None and is_new(evaluation.id, task.name, retry.at):
                again = f"{task.name} is retried at {datetime.fromisoformat(retry.at).astimezone():%H:%M:%S}"
                say(f"{again}: {retry.error.message} [{retry.error.code}]", err=True)
            if interim is not None and is_new(evaluation.id, task.name, interim.done):
                _say_so_far(f"{task.name} after {interim.done:,} {task.progress.unit}", interim)

    return report


def _say_so_far(when: str, interim: Interim) -> None:
    # Without its standard error, an interim value says little.
    values = [
        f"{label.partition('/')[2]} {shown_number(metric.value)} {error_bar(metric.stderr)}"
        for label, metric in zip(labels(interim.metrics, interim.protocols), interim.metrics, strict=True)
        if isinstance(metric.stderr, float)
    ]
    if values:
        say(f"{when}: {', '.join(values)}", err=True)
