"""What the command line says on stderr while it waits: bars, and what was found so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evalsvc.cli.tables import error_bar, shown_number
from evalsvc.cli.terminal import say
from evalsvc.messages import LookResult
from evalsvc.spec.protocol import labels
from evalsvc.spec.visible_text import visible_line

if TYPE_CHECKING:
    from evalsvc.worker.local import TaskLook


class Bars:
    """One progress bar per task, made when the task is first heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ids: dict[str, Any] = {}

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
    """What a task has found so far, on stderr."""
    if isinstance(look.result.output, LookResult):
        when = f"{look.task} after {look.units:,} of {look.total:,} {look.unit}"
        _say_so_far(when, look.result.output.metrics, look.result.output.protocols)


def print_news() -> Callable[[Mapping[str, Any]], None]:
    """Says on stderr what the tasks of an evaluation have found so far, and why one waits to be tried again; once each
    time."""
    said: set[tuple[int, str, object]] = set()

    def report(evaluation: Mapping[str, Any]) -> None:
        for task in evaluation["tasks"]:
            retry, interim = task.get("retry"), task.get("interim")
            if retry and (wait := (evaluation["id"], task["name"], retry["at"])) not in said:
                said.add(wait)
                error = retry["error"]
                when = datetime.fromisoformat(retry["at"]).astimezone()
                again = f"{task['name']} is tried again at {when:%H:%M:%S}"
                say(f"{again}: {error['message']} [{error['code']}]", err=True)
            if interim and (look := (evaluation["id"], task["name"], interim["done"])) not in said:
                said.add(look)
                where = f"{task['name']} after {interim['done']:,} {task['progress']['unit']}"
                _say_so_far(where, interim["metrics"], interim["protocols"])

    return report


def _say_so_far(when: str, metrics: Sequence[Mapping[str, Any]], protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Of metrics with an error, which says how far they may be from the end."""
    values = [
        f"{label.partition('/')[2]} {shown_number(metric['value'])} {error_bar(metric['stderr'])}"
        for label, metric in zip(labels(metrics, protocols), metrics, strict=True)
        if isinstance(metric["stderr"], float)
    ]
    if values:
        say(f"{when}: {', '.join(values)}", err=True)
