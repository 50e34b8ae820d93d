"""Where a result comes from: the file that `evalsvc run --output` wrote, or RUN@STEP[:VARIANT] of the service."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from evalsvc.client import OVER, Client
from evalsvc.compare.result import Result
from evalsvc.errors import DeadlineExceeded, InvalidData, UnknownName, os_reason
from evalsvc.spec.documents import Evaluation, ResultDocument
from evalsvc.spec.documents.reading import read
from evalsvc.spec.names import CHECKPOINT, parse_checkpoint

MAX_BYTES = 1 << 30
"""Bytes of the file of a result; 100,000 items with all their scores have a hundredth of that."""

MAX_COUNT = 10**15
"""Items that a value may rest on."""

MAX_NUMBER = 1e150
"""A finite value or standard error whose square is finite too."""

MAX_DEPTH = 32
"""Objects and lists inside one another, in the content of a protocol."""

MAX_KEYS = 2
"""Numbers of an item that a metric is made of: those of a mean, or of a ratio of sums."""


AnyResult = TypeVar("AnyResult", bound=ResultDocument)


@dataclass(frozen=True)
class Service:
    """Where RUN@STEP is looked up."""

    client: Client
    suite: str | None = None
    """Only this suite's values."""
    timeout: float = 3600.0
    """Seconds to wait for evaluations that are not over, of both sides together."""
    report: Callable[[Evaluation], None] | None = None
    """Gets an evaluation that is waited for, each time it is looked at."""
    every: float = 5.0
    """Seconds between two looks."""


def read_result(name: str, service: Service, deadline: float | None = None) -> Result:
    """A result by its file, or by RUN@STEP[:VARIANT] from the service.

    Evaluations that are not over are waited for until `deadline`, by `time.monotonic`; without one they are not.

    Raises:
        UnknownName: there is no such file, run, step or suite.
        InvalidData: the file is not a result.
        DeadlineExceeded: evaluations were not over in time.
    """
    if CHECKPOINT.fullmatch(name) is None:
        return Result(name, read_file(Path(name), ResultDocument))
    run, step, variant = parse_checkpoint(name)
    while True:
        document = service.client.results(run, step, variant=variant, suite=service.suite)
        pending = [evaluation.id for evaluation in document.evaluations if evaluation.state not in OVER]
        if deadline is None or not pending:
            return Result(name, document)
        for evaluation in pending:
            left = max(0.0, deadline - time.monotonic())
            try:
                service.client.wait(evaluation, every=service.every, timeout=left, report=service.report)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"{name}: {error.message}; try again, or raise --timeout") from None


def read_file(path: Path, kind: type[AnyResult]) -> AnyResult:
    """Read the file of a result, which may be anybody's: its size, types, numbers and depth are checked.

    Raises:
        UnknownName: there is no such file.
        InvalidData: the file is not a result.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UnknownName(
            f"there is no file {path}; write one by `evalsvc run SUITE --output {path}`, or name a checkpoint of the "
            "service, RUN@STEP"
        ) from None
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {os_reason(error)}") from None
    if len(content) > MAX_BYTES:
        raise InvalidData(f"{path} has more than {MAX_BYTES:,} bytes; a result of `evalsvc run --output` has fewer")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path} is not JSON: {' '.join(str(error).split())}") from None
    try:
        found = read(kind, document)
        _check(found)
    except (ValueError, OverflowError) as error:
        raise InvalidData(
            f"{path} is no result of `evalsvc run --output`: {error}; write the file anew by `evalsvc run SUITE "
            f"--output {path}`"
        ) from None
    return found


def _check(document: ResultDocument) -> None:
    """Raise ValueError or OverflowError for what the types of the document's fields do not say."""
    for metric in document.metrics:
        counts = (metric.n, metric.groups or 0, metric.drawn_from or 0)
        if not all(0 <= count <= MAX_COUNT for count in counts) or len(metric.items) > MAX_KEYS:
            raise ValueError(f"metrics: {metric.name[:80]!r} counts {counts} items, or is made of {metric.items}"[:200])
        # Perplexities are compared by their logarithms.
        is_loss = metric.unit != "perplexity" or not float(metric.value) > 0
        for number in (metric.value, metric.stderr, metric.baseline):
            if MAX_NUMBER < abs(float(number or 0)) < math.inf and is_loss:
                raise ValueError(f"metrics: {metric.name[:80]!r} has the number {number:g}, whose square is none")
    for identity, content in document.protocols.items():
        if _is_deep(content):
            raise ValueError(f"protocols: {identity[:80]!r} is nested deeper than {MAX_DEPTH}")
    for task, rows in document.items.items():
        for row in rows:
            if not isinstance(row.get("index"), int | str | None) or not isinstance(row.get("benchmark"), str | None):
                raise ValueError(f"items: {task[:80]!r} has {repr(row)[:80]}, whose index or benchmark is no name")


def _is_deep(content: object) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        inside = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [inner for values in inside if isinstance(values, list) for inner in values]
    return bool(level)
