"""State of a service as a screen of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from evalsvc.spec import documents
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.formats import bytes_ as shown_bytes

SHOWN_RUNS = 8
"""Most lines for runs with a queue; the longest queues come first."""

NARROW = 40
"""Least width of a line, in characters."""


def status_screen(status: documents.Status, url: str, width: int | None = None) -> list[str]:
    """Return the lines; a line that is longer than `width` continues, indented, on further lines."""
    lines = list(_lines(status, url))
    if width is None:
        return lines
    return [part for line in lines for part in _continued(line, max(width, NARROW))]


def _continued(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return wrap(line, width, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True) or [line]


def line_style(line: str) -> str:
    """Return the colour of a line: red for failures and for reasons why the service cannot evaluate."""
    if line.startswith(("failed last:", "  ! ")) or ": NOT READY" in line:
        return "red"
    return "yellow" if line.startswith("suspicious:") else ""


def duration(seconds: float) -> str:
    """Return a duration in at most two units: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _lines(status: documents.Status, url: str) -> Iterator[str]:
    ready = "ready" if status.status == "ready" else "NOT READY"
    yield f"evalsvc {status.version} at {url}: {ready}, database {status.database}"
    for missing in status.missing:
        yield f"  ! {_one_line(missing)}"
    yield from _disk(status.disk)
    yield from _workers(status.workers)
    yield from _queue(status.queue)
    yield from _running(status.running, status.queue.running)
    yield from _failed(status.failed)
    yield from _warned(status.warned)


def _disk(disk: documents.Disk | None) -> Iterator[str]:
    if disk is None:
        return
    at_least = "" if disk.data_complete else "more than "
    database = "" if disk.database_bytes is None else f", the database {shown_bytes(disk.database_bytes)}"
    yield (
        f"disk: {shown_bytes(disk.free_bytes)} of {shown_bytes(disk.total_bytes)} free; "
        f"the data folder has {at_least}{shown_bytes(disk.data_bytes)}{database}"
    )


def _workers(workers: Sequence[documents.Worker]) -> Iterator[str]:
    busy = sum(worker.runs is not None for worker in workers)
    yield f"workers: {len(workers)}, {busy} at work"
    for worker in workers:
        work = worker.runs
        what = "idle"
        if work is not None:
            what = f"{work.run}@{work.step}, {work.task} ({work.stage}) for {duration(work.seconds)}"
        unavailable = "" if worker.takes_shards else "; drains, or sends no heartbeat"
        yield f"  {worker.name} on {worker.host}: {what}{unavailable}"


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


def _running(running: Sequence[documents.RunningEvaluation], count: int) -> Iterator[str]:
    if running:
        yield "running:"
    for evaluation in running:
        tasks = "; ".join(_task(task) for task in evaluation.tasks) or "waits for a worker"
        yield f"  evaluation {evaluation.id}: {_place(evaluation)}, {evaluation.suite}: {tasks}"
    if count > len(running):
        yield f"  … and {count - len(running)} more"


def _task(task: documents.RunningTask) -> str:
    progress = task.progress
    if progress.total is None:
        return f"{task.name} is planned"
    speed = "" if progress.per_second is None else f", {progress.per_second:.3g}/s"
    left = "" if progress.seconds_left is None else f", {duration(max(0.0, progress.seconds_left))} left"
    return f"{task.name} {progress.done:,}/{progress.total:,} {progress.unit}{speed}{left}"


def _failed(failed: Sequence[documents.FailedEvaluation]) -> Iterator[str]:
    if failed:
        yield "failed last:"
    for evaluation in failed:
        error = evaluation.error or documents.Error(code="unknown", message="the reason is not recorded")
        when = (evaluation.finished_at or "")[:16].replace("T", " ")
        yield (
            f"  {when} evaluation {evaluation.id}: {_place(evaluation)}, {evaluation.suite}: "
            f"[{error.code}] {_one_line(error.message)}"
        )


def _warned(warned: Sequence[documents.WarnedTask]) -> Iterator[str]:
    """Yield a line with the first warning of each task that ended last with warnings about its result."""
    if warned:
        yield "suspicious:"
    for task in warned:
        first, *others = task.warnings
        more = f" (and {len(others)} more)" if others else ""
        yield (
            f"  evaluation {task.id}: {_place(task)}, {task.suite}{more}: "
            f"{_one_line(first.metric)}: {_one_line(first.message)}"
        )


def _place(item: documents.RunningEvaluation | documents.FailedEvaluation | documents.WarnedTask) -> str:
    return checkpoint_name(item.run, item.step, item.variant)


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
