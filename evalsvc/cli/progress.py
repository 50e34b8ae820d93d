"""What the command line says on stderr while it waits: bars, and what was found so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from evalsvc.cli.tables import error_bar, shown_number
from evalsvc.cli.terminal import say
from evalsvc.messages import LookResult
from evalsvc.spec.documents import Evaluation, Interim
from evalsvc.spec.documents.reading import read
from evalsvc.spec.protocol import labels
from evalsvc.spec.visible_text import visible_line

if TYPE_CHECKING:
    from evalsvc.worker.local import TaskLook


class Bars:
    """One progress bar per task, made when the task is first heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ids: dict[str, TaskID] = {}

    def show(self, task: str, done: int, total: int | None, unit: str) -> None:
        if task not in self._ids:
            self._ids[task] = self._progress.add_task(visible_line(task), total=None, unit=visible_line(unit))
        self._progress.update(self._ids[task], completed=done, total=total, unit=visible_line(unit))


@contextmanager
def show_bars() -> Iterator[Bars]:
    """Bars on stderr, so that stdout holds the result alone."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        yield Bars(progress)


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
