"""Reading a result from a file of `evalsvc run --output`, or of RUN@STEP[:VARIANT] from the service."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from evalsvc.client import OVER, Client
from evalsvc.client.reader import locate
from evalsvc.compare.result import Result
from evalsvc.errors import DeadlineExceeded, InvalidData, UnknownName, os_reason
from evalsvc.spec.documents import Evaluation, ResultDocument
from evalsvc.spec.documents.document import validation_message
from evalsvc.spec.names import is_checkpoint
from evalsvc.spec.visible_text import check_visible, visible_line

MAX_BYTES = 1 << 30
"""Largest size of a result file in bytes; a file with 100,000 items and all their scores has a hundredth of this."""

MAX_COUNT = 10**15

MAX_NUMBER = 1e150
"""Largest finite value or standard error: its square is finite too."""

MAX_DEPTH = 32

MAX_KEYS = 2
"""Largest number of columns that a metric is computed from: one for a mean, two for a ratio of sums."""


@dataclass(frozen=True)
class Service:
    """The service that results of RUN@STEP are read from, and how to wait for them."""

    client: Client
    suite: str | None = None
    """Name of the suite whose values are read; None for all suites."""
    timeout: float = 3600.0
    """Seconds to wait for evaluations that have not ended, for both sides together."""
    report: Callable[[Evaluation], None] | None = None
    """Function to call with an evaluation that has not ended, each time its state is read."""
    every: float = 5.0


def read_result(name: str, service: Service, deadline: float | None = None) -> Result:
    """Read a result, and wait until `deadline`, by `time.monotonic`, if any, for evaluations that have not ended."""
    if not is_checkpoint(name):
        return Result(name, _with_visible_errors(read_file(Path(name))))
    run, step, variant = locate(service.client, name)
    while True:
        document = service.client.results(run, step, variant=variant, suite=service.suite)
        pending = [evaluation.id for evaluation in document.evaluations if evaluation.state not in OVER]
        if deadline is None or not pending:
            return Result(name, _with_visible_errors(document))
        for evaluation in pending:
            left = max(0.0, deadline - time.monotonic())
            try:
                service.client.wait(evaluation, every=service.every, timeout=left, report=service.report)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"{name}: {error.message}; try again, or raise --timeout") from None


def read_file(path: Path) -> ResultDocument:
    """Read a result file, which may come from a stranger: its size, types, numbers and depth are checked."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UnknownName(
            f"there is no file {path}; write one with `evalsvc run SUITE --output {path}`, or name a checkpoint of the "
            "service, RUN@STEP"
        ) from None
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {os_reason(error)}; give a file of `evalsvc run --output`") from None
    if len(content) > MAX_BYTES:
        raise InvalidData(f"{path} has more than {MAX_BYTES:,} bytes; give a file of `evalsvc run --output`")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InvalidData(f"{path} is not JSON: {reason}; give a file of `evalsvc run --output`") from None
    try:
        result = ResultDocument.model_validate(document)
        _check(result)
    except (ValueError, OverflowError) as error:
        reason = validation_message(error) if isinstance(error, ValidationError) else str(error)
        raise InvalidData(
            f"{path} is no result of `evalsvc run --output`: {visible_line(reason)}; write the file again with "
            f"`evalsvc run SUITE --output {path}`"
        ) from None
    return result


def _check(document: ResultDocument) -> None:
    for text in (*document.protocols, *document.items, *document.errors):
        check_visible(text)
    for metric in document.metrics:
        for name in (metric.name, metric.unit, metric.task, metric.protocol, metric.grouped_by, *metric.items):
            check_visible(name or "")
        counts = (metric.n, metric.groups or 0, metric.drawn_from or 0)
        if not all(0 <= count <= MAX_COUNT for count in counts) or len(metric.items) > MAX_KEYS:
            raise ValueError(f"metrics: {metric.name[:80]!r} counts {counts} items, or is made of {metric.items}"[:200])
        # Perplexities are compared by their logarithms, so large perplexities are harmless.
        is_loss = metric.unit != "perplexity" or not float(metric.value) > 0
        for number in (metric.value, metric.stderr, metric.baseline):
            if MAX_NUMBER < abs(float(number or 0)) < math.inf and is_loss:
                raise ValueError(f"metrics: {metric.name[:80]!r} has the number {number:g}, whose square is none")
        if not -math.inf < float(metric.low or 0) <= float(metric.high or 0) < math.inf:
            raise ValueError(f"metrics: {metric.name[:80]!r} has `low` and `high` that are no ends of an interval")
    for identity, content in document.protocols.items():
        if _is_deep(content):
            raise ValueError(f"protocols: {identity[:80]!r} is nested deeper than {MAX_DEPTH}")
    for task, rows in document.items.items():
        for row in rows:
            if not isinstance(row.get("index"), int | str | None) or not isinstance(row.get("benchmark"), str | None):
                raise ValueError(f"items: {task[:80]!r} has {repr(row)[:80]}, whose index or benchmark is no name")


def _with_visible_errors(document: ResultDocument) -> ResultDocument:
    """Return a result whose errors are one line each. A line of a stranger may be a command to a CI runner."""
    errors = {
        task: error.model_copy(update={"message": visible_line(error.message)})
        for task, error in document.errors.items()
    }
    return document.model_copy(update={"errors": errors})


def _is_deep(content: object) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        inside = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [inner for values in inside if isinstance(values, list) for inner in values]
    return bool(level)
