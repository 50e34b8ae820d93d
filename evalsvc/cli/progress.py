"""What the command line prints on stderr while a command waits: progress, and interim results."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from evalsvc.cli.status_screen import duration
from evalsvc.cli.tables import error_bar, shown_number
from evalsvc.cli.terminal import one_line, say
from evalsvc.messages import LookResult
from evalsvc.spec.documents import Evaluation, Interim
from evalsvc.spec.documents.reading import read
from evalsvc.spec.protocol import labels
from evalsvc.spec.visible_text import visible_line

if TYPE_CHECKING:
    from evalsvc.worker.local import TaskLook


EVERY = 10.0
"""Seconds between two lines about the progress where stderr is no terminal."""


class Bars(Protocol):
    """Shows how far tasks are."""

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        """Say how far a task is, in units of its work; `total` is None until the task is planned."""


class _TerminalBars:
    """One progress bar per task, made when the task is first heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ids: dict[str, TaskID] = {}

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        if task not in self._ids:
            self._ids[task] = self._progress.add_task(visible_line(task), total=None, unit=visible_line(unit))
        self._progress.update(self._ids[task], completed=done, total=total, unit=visible_line(unit))


class ProgressLines:
    """A line about all tasks now and then, and at the end, for a log.

    A thread prints the lines, since work may be silent for longer than the time between two of them.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._every = every
        self._begun = time.monotonic()
        self._tasks: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True, name="progress")

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        of = "" if total is None else f" of {total:,}"
        self._tasks = self._tasks | {task: f"{one_line(task)} {done:,}{of} {one_line(unit)}".rstrip()}

    def __enter__(self) -> ProgressLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._tasks:
            self._print_line()

    def _print(self) -> None:
        while not self._over.wait(self._every):
            self._print_line()

    def _print_line(self) -> None:
        found = "; ".join(self._tasks.values()) or "nothing has begun yet"
        say(f"after {duration(time.monotonic() - self._begun)}: {found}", err=True)


@contextmanager
def show_bars() -> Iterator[Bars]:
    """Show progress on stderr, so that stdout holds the result alone: bars in a terminal, else a line now and then."""
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


def print_interim(look: TaskLook) -> None:
    """Print what a task has found so far, on stderr."""
    if isinstance(look.result.output, LookResult):
        found = read(Interim, {"done": look.units, **asdict(look.result.output)})
        _say_so_far(f"{look.task} after {look.units:,} of {look.total:,} {look.unit}", found)


def print_news() -> Callable[[Evaluation], None]:
    """Return what prints, on stderr and once each, what tasks have found so far and why one waits to be tried again."""
    said: set[tuple[object, ...]] = set()

    def is_new(*news: object) -> bool:
        known = news in said
        said.add(news)
        return not known

    def report(evaluation: Evaluation) -> None:
        for task in evaluation.tasks:
            retry, interim = task.retry, task.interim
            if retry is not None and is_new(evaluation.id, task.name, retry.at):
                when = datetime.fromisoformat(retry.at).astimezone()
                again = f"{task.name} is tried again at {when:%H:%M:%S}"
                say(f"{again}: {retry.error.message} [{retry.error.code}]", err=True)
            if interim is not None and is_new(evaluation.id, task.name, interim.done):
                _say_so_far(f"{task.name} after {interim.done:,} {task.progress.unit}", interim)

    return report


def _say_so_far(when: str, found: Interim) -> None:
    """Print metrics with an error, which says how far they may be from the end."""
    values = [
        f"{label.partition('/')[2]} {shown_number(metric.value)} {error_bar(metric.stderr)}"
        for label, metric in zip(labels(found.metrics, found.protocols), found.metrics, strict=True)
        if isinstance(metric.stderr, float)
    ]
    if values:
        say(f"{when}: {', '.join(values)}", err=True)
