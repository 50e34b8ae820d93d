"""`evalsvc status`: state of the service."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

import typer

from evalsvc.cli.options import FAILED, Form, Output, Url, connect
from evalsvc.cli.printer import moment, printed_to, show
from evalsvc.cli.terminal import say, terminal_width
from evalsvc.cli.wording import duration
from evalsvc.spec import documents
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.formats import bytes_ as shown_bytes

commands = typer.Typer()

SHOWN_RUNS, SHOWN_FAILED, NARROW = 8, 5, 40
"""Most lines for runs with a queue, of which the longest come first, and for failures; least width of a line."""


@commands.command()
def status(form: Form = "table", output: Output = None, url: Url = None) -> None:
    """Show the state of the service: workers and their tasks, the queue, and the last failures.

    The exit code is 1 if the service cannot evaluate, and 2 if the service does not answer.
    """
    with connect(url) as client:
        document = client.status()
        address = client.url

    def print_screen(document: documents.Status) -> None:
        for line in status_screen(document, address, terminal_width()):
            say(line, style=line_style(line))

    with printed_to(output):
        show(document, form, print_screen)
    if document.status != "ready":
        raise typer.Exit(FAILED)


def status_screen(status: documents.Status, url: str, width: int | None = None) -> list[str]:
    """Return the lines; a line that is longer than `width` continues, indented, on further lines."""
    lines: list[str] = []
    for line in _lines(status, url):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        room = len(line) + 1 if width is None else max(width, NARROW)
        lines += wrap(line, room, subsequent_indent=indent, break_on_hyphens=False) or [line]
    return lines


def line_style(line: str) -> str:
    """Return the colour of a line: red for failures and for reasons why the service cannot evaluate."""
    if line.startswith(("failed last:", "  ! ")) or ": NOT READY" in line:
        return "red"
    return "yellow" if line.startswith("suspicious:") else ""


def _lines(status: documents.Status, url: str) -> Iterator[str]:
    ready = "ready" if status.status == "ready" else "NOT READY"
    code = f" (code {status.code})" if status.code else ""
    yield f"evalsvc {status.version}{code} at {url}: {ready}, database {status.database}"
    for missing in status.missing:
        yield f"  ! {_one_line(missing)}"
    if (disk := status.disk) is not None:
        at_least = "" if disk.data_complete else "more than "
        database = "" if disk.database_bytes is None else f", the database {shown_bytes(disk.database_bytes)}"
        yield (
            f"disk: {shown_bytes(disk.free_bytes)} of {shown_bytes(disk.total_bytes)} free; "
            f"the data folder has {at_least}{shown_bytes(disk.data_bytes)}{database}"
        )
    yield f"workers: {len(status.workers)}, {sum(worker.runs is not None for worker in status.workers)} at work"
    for worker in status.workers:
        what = "idle"
        if (work := worker.runs) is not None:
            what = f"{work.run}@{work.step}, {work.task} ({work.stage}) for {duration(work.seconds)}"
        refuses = f"; takes no shards: {worker.refuses}" if worker.refuses else ""
        yield f"  {worker.name} on {worker.host}: {what}{refuses}"
    yield from _queue(status.queue)
    if status.running:
        yield "running:"
    for evaluation in status.running:
        tasks = "; ".join(_task(task) for task in evaluation.tasks) or "waits for a worker"
        yield f"  evaluation {evaluation.id}: {_place(evaluation)}: {tasks}"
    if (more := status.queue.running - len(status.running)) > 0:
        yield f"  … and {more} more"
    if status.failed:
        yield "failed last:"
    for failed in status.failed[:SHOWN_FAILED]:
        error = failed.error or documents.Error(code="unknown", message="the reason is not recorded")
        when = moment(failed.finished_at or "")
        yield f"  {when} evaluation {failed.id}: {_place(failed)}: [{error.code}] {_one_line(error.message)}"
    if status.warned:
        yield "suspicious:"
    for warned in status.warned:
        first, *others = warned.warnings
        more_warnings = f" (and {len(others)} more)" if others else ""
        message = f"{_one_line(first.metric)}: {_one_line(first.message)}"
        yield f"  evaluation {warned.id}: {_place(warned)}{more_warnings}: {message}"


def _queue(queue: documents.Queue) -> Iterator[str]:
    if not queue.queued and not queue.running:
        yield f"queue: empty; {queue.finished_last_hour:,} evaluations in the last hour"
        return
    oldest = "" if queue.oldest_seconds is None else f", the oldest for {duration(queue.oldest_seconds)}"
    left = "" if queue.seconds_left is None else f", about {duration(queue.seconds_left)} left"
    yield (
        f"queue: {queue.queued:,} evaluations wait{oldest}; {queue.running:,} run; "
        f"{queue.finished_last_hour:,} in the last hour{left}"
    )
    runs = sorted(queue.runs, key=lambda run: (-run.queued, -run.running, run.run))
    for run in runs[:SHOWN_RUNS]:
        waits = "" if run.oldest_seconds is None else f" (the oldest for {duration(run.oldest_seconds)})"
        yield f"  {run.run}: {run.queued:,} wait{waits}, {run.running:,} run"
    if len(runs) > SHOWN_RUNS:
        yield f"  … and {len(runs) - SHOWN_RUNS} more runs"


def _task(task: documents.RunningTask) -> str:
    progress = task.progress
    if progress.total is None:
        return f"{task.name} is planned"
    speed = "" if progress.per_second is None else f", {progress.per_second:.3g}/s"
    left = "" if progress.seconds_left is None else f", {duration(max(0.0, progress.seconds_left))} left"
    return f"{task.name} {progress.done:,}/{progress.total:,} {progress.unit}{speed}{left}"


def _place(item: documents.RunningEvaluation | documents.FailedEvaluation | documents.WarnedTask) -> str:
    return f"{checkpoint_name(item.run, item.step, item.variant)}, {item.suite}"


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
